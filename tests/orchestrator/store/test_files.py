"""Files: the same on a folder and a bucket, paths that stay inside, and patience."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import StoreError, StoreUnavailable
from orchestrator.store.files import Files
from orchestrator.store.patience import Patience

pytest_plugins = ["tests.integration.s3_server"]

S3 = pytest.param("s3", marks=pytest.mark.integration)


class Waits:
    """A clock that goes on only while somebody sleeps; `then` is called at each sleep."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.now_s = 1000.0
        self.all: list[float] = []
        self.then = then

    def sleep(self, seconds: float) -> None:
        self.all.append(seconds)
        self.now_s += seconds
        self.then()

    def patience(self, limit_s: float = 600.0) -> Patience:
        return Patience(limit_s, self.sleep, lambda: self.now_s, lambda: 1.0)


@pytest.fixture(params=["folder", S3])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "store")


def test_a_text_comes_back(files: Files) -> None:
    assert files.read("a/b.json") is None
    files.write("a/b.json", "one")
    files.write("a/b.json", "twö")
    assert files.read("a/b.json") == "twö"
    info = files.info("a/b.json")
    assert info is not None and info.size_bytes == 4
    assert (files.exists("a/b.json"), files.exists("a"), files.exists("a/c")) == (
        True,
        False,
        False,
    )


def test_listing(files: Files) -> None:
    assert files.list("a") == []
    for path in ("a/1", "a/2", "a/b/3", "a/.hidden"):
        files.write(path, "")
    assert sorted(files.list("a")) == ["1", "2", "b"]
    found = {entry.path: entry.size_bytes for entry in files.walk("a")}
    assert found == {"a/1": 0, "a/2": 0, "a/b/3": 0, "a/.hidden": 0}
    assert files.walk("nowhere") == []


def test_what_is_deleted_is_gone(files: Files) -> None:
    for path in ("a/1", "a/2", "a/b/3"):
        files.write(path, "x")
    files.delete("a/1")
    files.delete("a/1")
    assert {entry.path for entry in files.walk("a")} == {"a/2", "a/b/3"}
    files.delete_folder("a/b")
    files.delete_folder("a/b")
    assert [entry.path for entry in files.walk("a")] == ["a/2"]


def test_a_file_is_put_and_read_as_a_local_one(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(bytes(range(256)) * 1000)
    size_bytes, digest = files.put(source, "objects/k-1/weights")
    assert (size_bytes, len(digest)) == (256_000, 64)
    with files.as_local("objects/k-1/weights") as path:
        assert path.read_bytes() == bytes(range(256)) * 1000


def test_a_file_moves(files: Files) -> None:
    files.write("a/1", "x")
    assert files.move("a/1", "b/c/2")
    assert not files.move("a/1", "b/c/3")
    assert [entry.path for entry in (*files.walk("a"), *files.walk("b"))] == ["b/c/2"]


def test_empty_folders_are_pruned_and_others_are_not(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write("objects/a/b/1", "x")
    files.write("objects/c/1", "x")
    files.delete("objects/a/b/1")
    files.prune(["objects/a/b", "objects/c"])
    assert os.listdir(tmp_path / "objects") == ["c"]


ODD = ["../x", "a/../x", "/x", "a//x", "", ".", "a/.", "a\\x", "a/\0x", "../../x", "a/"]


@pytest.mark.parametrize("path", ODD)
def test_a_path_that_leaves_the_store_is_refused(path: str, tmp_path: Path) -> None:
    files = Files(tmp_path / "a" / "store")
    source = tmp_path / "source"
    source.write_text("x")
    files.write("there", "x")
    works: list[Callable[[], object]] = [
        lambda: files.list(path),
        lambda: files.walk(path),
        lambda: files.info(path),
        lambda: files.exists(path),
        lambda: files.read(path),
        lambda: files.write(path, "x"),
        lambda: files.put(source, path),
        lambda: files.move(path, "here"),
        lambda: files.move("there", path),
        lambda: files.delete(path),
        lambda: files.delete_folder(path),
        lambda: files.as_local(path).__enter__(),
    ]
    for work in works:
        with pytest.raises(StoreError, match="is no path in a store"):
            work()
    assert source.exists()
    assert files.read("there") == "x"


@pytest.mark.parametrize(
    "location, said",
    [
        ("s3://key:hush@bucket/x", "s3://bucket/x alone"),
        ("s3://key@bucket/x", "s3://bucket/x alone"),
        ("s3://bucket/x?access_key=me&secret_key=hush", "belong into the environment"),
        ("s3://bucket/x?endpoint_override=http://me:hush@host", "AWS_ENDPOINT_URL_S3"),
        ("s3://bucket/x#hush", "s3://bucket/x alone"),
        ("gs://me:hush@bucket/x", "gs://bucket/x alone"),
        ("s3:///x", "names no bucket"),
        ("https://me:hush@host/x", "got something of the scheme 'https'"),
    ],
)
def test_a_location_with_credentials_is_refused_without_echoing_them(
    location: str, said: str
) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Files(location)
    assert "hush" not in str(caught.value)


# Patience


def failing(times: int, error: OSError) -> Callable[[], str]:
    left = [error] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    return work


AWS = "When reading information for key 'x' in bucket 'b': AWS Error {} during HeadObject: y"
PASSING = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(AWS.format("UNKNOWN (HTTP status 500)")),
    OSError(AWS.format("UNKNOWN (HTTP status 503)")),
    OSError(AWS.format("SLOW_DOWN")),
    OSError(AWS.format("NETWORK_CONNECTION") + " curlCode: 7, Could not connect to server"),
]
LASTING = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(AWS.format("ACCESS_DENIED")),
    OSError(AWS.format("NO_SUCH_BUCKET")),
    OSError(AWS.format("UNKNOWN (HTTP status 301)")),
    OSError(AWS.format("NETWORK_CONNECTION") + " curlCode: 60, SSL certificate problem"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_may_pass_is_tried_again(error: OSError, caplog: pytest.LogCaptureFixture) -> None:
    waits = Waits()
    with caplog.at_level(logging.WARNING, "resurge.store"):
        assert waits.patience().call("read x", failing(3, error)) == "done"
    assert waits.all == [0.5, 1.0, 2.0]
    [line] = caplog.messages
    assert line.startswith("cannot read x: ")


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_does_not_pass_is_an_error_at_once(error: OSError) -> None:
    waits = Waits()
    with pytest.raises(StoreError, match="cannot read x: ") as caught:
        waits.patience().call("read x", failing(1, error))
    assert not isinstance(caught.value, StoreUnavailable)
    assert waits.all == []


def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    waits = Waits()
    with pytest.raises(StoreUnavailable, match=r"could not read x for 100 s: Input/output error"):
        waits.patience(100.0).call("read x", failing(99, PASSING[1]))
    assert sum(waits.all) == 100.0
    assert max(waits.all) == 30.0
    assert len(caplog.messages) == 1


def test_patience_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESURGE_STORE_PATIENCE_S", "12")
    assert Patience().limit_s == 12.0
    for odd in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("RESURGE_STORE_PATIENCE_S", odd)
        with pytest.raises(StoreError, match=f"must be a number of seconds.*{odd}"):
            Patience()


def test_a_store_that_may_not_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    waits = Waits()
    with pytest.raises(StoreError, match=r"cannot write .*/a/b"):
        Files(tmp_path / "store", waits.patience()).write("a/b", "x")
    assert waits.all == []


# A disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "resurge-test", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_waited_for_and_nothing_is_left_half_written(
    small_disk: Path, tmp_path: Path
) -> None:
    waits = Waits()
    files = Files(small_disk / "store", waits.patience(60.0))
    source = tmp_path / "weights"
    source.write_bytes(b"x" * 100_000)
    with pytest.raises(StoreUnavailable, match=r"No space left on device.*resurge store gc"):
        files.write("a/text", "x" * 100_000)
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        files.put(source, "a/weights")
    assert files.walk("a") == []
    assert source.stat().st_size == 100_000


@pytest.mark.parametrize("kind", ["write", "put"])
def test_a_disk_with_room_again_goes_on(small_disk: Path, tmp_path: Path, kind: str) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 40_000)

    def make_room() -> None:
        if len(waits.all) == 2:
            filler.unlink()

    waits = Waits(make_room)
    files = Files(small_disk / "store", waits.patience())
    source = tmp_path / "weights"
    source.write_text("y" * 40_000)
    if kind == "write":
        files.write("a/b", "y" * 40_000)
    else:
        files.put(source, "a/b")
    assert waits.all == [0.5, 1.0]
    assert files.read("a/b") == "y" * 40_000
    assert [entry.path for entry in files.walk("a")] == ["a/b"]
