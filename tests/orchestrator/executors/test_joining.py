"""A cluster that cannot be joined: said in a sentence that names RAY_ADDRESS, and soon."""

from __future__ import annotations

import socket

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.executors import joining
from orchestrator.executors.joining import address_to_join, check


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_ray_is_started_here(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert address_to_join() is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "resurge submit SWEEP --cluster http://host:8265"),
        ("http://head:8265", "resurge submit SWEEP --cluster http://host:8265"),
        ("head", "must be host:port"),
        ("head:", "must be host:port"),
        (":6379", "must be host:port"),
        ("head:port", "must be host:port"),
        ("head:0", "must be host:port"),
        ("head:65536", "must be host:port"),
        ("no-such-host.invalid:6379", "nothing answers there ("),
        ("127.0.0.1:{free}", "nothing answers there (Connection refused)"),
        ("[::1]:{free}", "nothing answers there ("),
    ],
)
def test_what_cannot_be_reached(address: str, words: str) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # and does not listen
        meant = address.format(free=one.getsockname()[1])
        with pytest.raises(ResurgeError) as caught:
            check(meant)
    said = str(caught.value)
    assert said.startswith("RAY_ADDRESS ") and repr(meant) in said and words in said
    assert said.endswith("unset RAY_ADDRESS to run on this machine")
    assert "\n" not in said


@pytest.mark.slow
def test_what_answers_and_is_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for a quarter of an hour."""
    monkeypatch.setattr(joining, "ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResurgeError, match="does not answer as Ray does within 3 s") as caught:
            check(address)
    assert f"RAY_ADDRESS is {address!r}" in str(caught.value)
