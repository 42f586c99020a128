"""The store on a bucket in trouble: errors that pass, errors that do not, and who is let in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.core.errors import CorruptObject, StoreError, StoreUnavailable
from orchestrator.core.stage import Stage
from orchestrator.store.files import Files
from orchestrator.store.patience import Patience
from orchestrator.store.store import Record, Store

if TYPE_CHECKING:
    from tests.integration.s3_server import Proxy

pytest_plugins = ["tests.integration.s3_server"]
pytestmark = pytest.mark.integration

Request = Callable[[str, str], bytes]

BASE = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {}}, None, None)
STAGE = Stage("unlearn", "nudge", 1, {"settings": {}}, {"settings": {}}, None, BASE)


class Waits:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.now_s, self.count, self.then = 0.0, 0, then

    def sleep(self, seconds: float) -> None:
        self.count += 1
        self.now_s += seconds
        self.then()

    def patience(self, limit_s: float = 600.0) -> Patience:
        return Patience(limit_s, self.sleep, lambda: self.now_s)


def commit(store: Store, content: bytes) -> Record:
    with store.scratch() as folder:
        path = folder / "note"
        path.write_bytes(content)
        return store.commit(STAGE, {"note": path}, {"a": 1.0}, "now", 2.0, {})


@pytest.mark.parametrize("status", [500, 503])
def test_errors_in_the_midst_of_a_commit_pass(s3: str, proxy: Proxy, status: int) -> None:
    proxy.status = status
    waits = Waits()
    store = Store(s3, waits.patience())
    large = os.urandom(12_000_000)  # uploaded in parts
    proxy.failures = 8
    record = commit(store, large)
    assert waits.count > 0
    for failures in (1, 3):
        proxy.failures = failures
        assert Store(s3, waits.patience()).get(STAGE) == record
        proxy.failures = failures
        with store.object(record, "note") as path:
            assert path.read_bytes() == large
    assert store.files.list("quarantine") == []


@pytest.mark.parametrize("failures", range(1, 8))
def test_what_was_put_is_there(s3: str, proxy: Proxy, tmp_path: Path, failures: int) -> None:
    """A small file is one request, whose error comes when the upload is closed."""
    files = Files(s3, Waits().patience())
    assert files.list("objects") == []
    source = tmp_path / "note"
    source.write_bytes(b"a few bytes")
    proxy.failures = failures
    files.put(source, "objects/note")
    assert files.read_bytes("objects/note") == b"a few bytes"


def test_errors_that_last_end_in_one_error(s3: str, proxy: Proxy) -> None:
    store = Store(s3, Waits().patience(30.0))
    proxy.failures = 10_000
    with pytest.raises(StoreUnavailable, match=r"could not read s3://.*HTTP status 500") as caught:
        store.record(STAGE.key)
    assert "RESURGE_STORE_PATIENCE_S" in str(caught.value)
    proxy.failures = 0
    assert store.record(STAGE.key) is None


@pytest.mark.parametrize("damages", [1, 2])
def test_damage_on_the_way_is_no_damage(s3: str, proxy: Proxy, damages: int) -> None:
    """What is wrong twice is set aside; what is right when it is fetched again is not."""
    store = Store(s3)
    record = commit(store, b"hello")
    proxy.damages = damages
    if damages == 1:
        with store.object(record, "note") as path:
            assert path.read_bytes() == b"hello"
        assert store.get(STAGE) == record
        return
    with pytest.raises(CorruptObject), store.object(record, "note"):
        raise AssertionError("it was handed out")
    assert len(store.files.list("quarantine")) == 1


@pytest.mark.parametrize("damages", [1, 2])
def test_a_record_that_is_damaged_on_its_way_stays(s3: str, proxy: Proxy, damages: int) -> None:
    store = Store(s3)
    record = commit(store, b"hello")
    proxy.damages = damages
    assert store.get(STAGE) == (record if damages == 1 else None)
    assert store.get(STAGE) == record
    assert store.files.list("quarantine") == []


def test_what_hangs_below_a_records_name_is_in_nobodys_way(s3: str) -> None:
    """A bucket has no folders, but names that look like paths: one below a file's own name."""
    store = Store(s3)
    store.files.write(f"records/{STAGE.key}.json/in/it", "x")
    assert store.get(STAGE) is None
    record = commit(store, b"hello")
    assert store.get(STAGE) == record
    assert store.keys() == {STAGE.key}


def test_whether_there_is_a_store_at_all(s3: str) -> None:
    assert not Store(s3).files.has_any()
    commit(Store(s3), b"hello")
    assert Store(s3).files.has_any()
    assert not Store(f"{s3}/elsewhere").files.has_any()


def test_a_server_that_is_away_is_waited_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match="Check the network, and AWS_ENDPOINT_URL_S3"):
            Store(s3, Waits().patience(5.0)).keys()


def test_a_bucket_that_is_not_there_is_said_at_once(s3: str) -> None:
    waits = Waits()
    store = Store("s3://not-there/x", waits.patience())
    with pytest.raises(StoreError, match=r"no bucket 'not-there'.*never makes a bucket"):
        store.keys()
    with pytest.raises(StoreError, match="no bucket 'not-there'"):
        store.put_sweep("mine", {})
    assert waits.count == 0


def test_wrong_credentials_are_said_at_once(s3: str, proxy: Proxy) -> None:
    waits = Waits()
    proxy.status, proxy.failures = 403, 10_000
    with pytest.raises(StoreError, match="Check AWS_ACCESS_KEY_ID") as caught:
        Store(s3, waits.patience()).keys()
    assert not isinstance(caught.value, StoreUnavailable)
    assert "testing-secret" not in str(caught.value)
    assert waits.count == 0


def test_half_of_the_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is"):
        Store(s3).keys()


@pytest.mark.parametrize("endpoint", ["host:9000", "ftp://host", "http://me:hush@host:9000"])
def test_an_odd_endpoint(s3: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL_S3 must be http") as caught:
        Store(s3).keys()
    assert "hush" not in str(caught.value)


def test_the_general_endpoint_counts_too(
    s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{s3_endpoint}/")
    store = Store(s3)
    assert store.get(STAGE) is None
    assert commit(store, b"hello") == store.get(STAGE)


def test_markers_of_empty_folders_are_nothing(s3: str, s3_request: Request) -> None:
    store = Store(s3)
    record = commit(store, b"hello")
    prefix = s3.removeprefix("s3:/")
    for marker in ("records/", "objects/", "checkpoints/", "checkpoints/abc/", "failures/"):
        s3_request("PUT", f"{prefix}/{marker}")
    assert store.keys() == {record.key}
    assert store.checkpoints("abc") == []
    assert store.failures() == {}
    assert [entry.path for entry in store.files.walk("objects")] == [record.objects["note"].path]


def test_nothing_is_written_above_the_prefix(s3: str, s3_request: Request) -> None:
    store = Store(s3)
    commit(store, b"hello")
    store.put_sweep("mine", {})
    store.files.delete("sweeps/mine.json")
    bucket, prefix = s3.removeprefix("s3://").split("/", 1)
    listed = s3_request("GET", f"/{bucket}?list-type=2").decode()
    keys = [part.partition("<")[0] for part in listed.split("<Key>")[1:]]
    assert keys
    assert all(key.startswith(f"{prefix}/") for key in keys)
