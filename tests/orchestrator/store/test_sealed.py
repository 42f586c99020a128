"""Sealed documents: what comes back is what was written, or nothing does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from orchestrator.store.sealed import MAX_DEPTH, seal, unseal

PATH = "failures/0123456789abcdef.json"
VALUES: dict[str, Any] = {
    "text": 'ü "quoted" \\ \u2028',
    "numbers": [0, -1, 10**30, 0.1, 1e-300, -0.0],
    "by number": {10: "ten", 9: "nine"},
    "nothing": None,
    "pair": (1, 2.5),
    "empty": {},
}


def test_values_come_back() -> None:
    plain = json.loads(json.dumps(VALUES))
    assert unseal(PATH, seal(PATH, VALUES).encode()) == plain
    # However it is written: another tool may have laid it out anew.
    other = json.dumps(json.loads(seal(PATH, VALUES)), sort_keys=True, separators=(",", ":"))
    assert unseal(PATH, other.encode()) == plain


def test_numbers_that_are_none_come_back() -> None:
    """The curve of a training whose loss is not finite is kept."""
    found = unseal(PATH, seal(PATH, {"curve": [math.nan, math.inf, -math.inf]}).encode())
    assert str(found["curve"]) == "[nan, inf, -inf]"


def test_no_byte_can_be_changed_without_notice() -> None:
    text = seal(PATH, VALUES).encode()
    plain = unseal(PATH, text)
    noticed = 0
    for place in range(len(text)):
        for flip in (1, 2, 16, 128):
            spoilt = bytearray(text)
            spoilt[place] ^= flip
            try:
                assert unseal(PATH, bytes(spoilt)) == plain
            except ValueError:
                noticed += 1
    assert noticed > 3 * len(text)


def test_no_document_can_be_cut_short() -> None:
    text = seal(PATH, VALUES).encode()
    for size in range(len(text)):
        with pytest.raises(ValueError, match="no JSON"):
            unseal(PATH, text[:size])


@pytest.mark.parametrize(
    "text, said",
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"7", "carries no checksum"),
        (b"{}", "carries no checksum"),
        (b'{"seal": "x"}', "carries no checksum"),
        (b'{"seal": {}}', "its checksum is another"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 500 + b"]" * 500, "nested more than 100 deep"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested more than 100 deep"),
        (b"1" * 5000, "no JSON"),
    ],
)
def test_what_is_wrong_is_said(text: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unseal(PATH, text)


def test_a_copy_at_another_place_is_refused() -> None:
    with pytest.raises(ValueError, match=f"it was written as {PATH}"):
        unseal("failures/fedcba9876543210.json", seal(PATH, VALUES).encode())


def test_what_could_not_be_read_again_is_not_written() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        seal(PATH, {"deep": deep})
    with pytest.raises(ValueError, match="cannot be kept as JSON"):
        seal(PATH, {"odd": object()})
