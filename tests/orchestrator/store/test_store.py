"""Store: atomic commits, comparison on a hit, checkpoints, and what is done about damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.artifacts import Failure
from orchestrator.core.errors import CorruptObject, StoreError, UnreadableFile
from orchestrator.core.stage import Stage
from orchestrator.store.sealed import seal
from orchestrator.store.store import Record, Store

pytest_plugins = ["tests.integration.s3_server"]

BASE = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {}}, None, None)
S3 = pytest.param("s3", marks=pytest.mark.integration)


def stage(default: Any = 1, **more: Any) -> Stage:
    settings = {"settings": {"amount": default, **more}}
    return Stage("unlearn", "nudge", 3, {"settings": {}}, settings, None, BASE)


def commit(store: Store, text: str = "hello", which: Stage | None = None) -> Record:
    with store.scratch() as folder:
        path = folder / "note.txt"
        path.write_text(text)
        return store.commit(which or stage(), {"note.txt": path}, {"a": 1.0}, "now", 2.0, {})


@pytest.fixture(params=["folder", "uri", S3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(request.getfixturevalue("s3"))
    return Store(tmp_path if request.param == "folder" else tmp_path.as_uri())


def text_of(store: Store, record: Record) -> str:
    with store.object(record, "note.txt") as path:
        return path.read_text()


def test_a_record_comes_back_as_it_was_committed(store: Store) -> None:
    committed = commit(store)
    assert store.get(stage()) == committed
    assert store.keys() == {stage().key}
    assert text_of(store, committed) == "hello"
    assert len(committed.digest) == 64


def test_the_first_commit_wins(store: Store) -> None:
    first = commit(store, "first")
    assert commit(store, "second") == first
    assert text_of(store, first) == "first"


def test_a_commit_without_its_record_is_not_there(store: Store) -> None:
    commit(store)
    store.files.delete(f"records/{stage().key}.json")
    assert store.get(stage()) is None
    assert store.keys() == set()
    assert commit(store, "again") == store.get(stage())


def test_a_half_written_record_is_not_seen(store: Store) -> None:
    commit(store)
    store.files.write("records/.0123", '{"dig')
    assert store.keys() == {stage().key}


def test_a_moved_default_is_refused_with_the_version_to_raise(store: Store) -> None:
    commit(store)
    with pytest.raises(StoreError, match=r"nudge.*amount was 1 and is 2.*version.*from 3 to 4"):
        store.get(stage(default=2))


def test_a_new_setting_with_a_default_is_not_a_moved_one(store: Store) -> None:
    commit(store)
    assert store.get(stage(newcomer=True)) is not None


def test_an_object_that_was_not_kept(store: Store) -> None:
    record = commit(store)
    with pytest.raises(StoreError, match="kept no 'weights'"), store.object(record, "weights"):
        raise AssertionError("it was handed out")


def test_records_are_copied_to_another_store(store: Store, tmp_path: Path) -> None:
    commit(store)
    other = Store(tmp_path / "other")
    assert store.copy(stage(), other)
    record = other.get(stage())
    assert record is not None
    assert text_of(other, record) == "hello"


# Damage


def spoil(store: Store, record: Record, how: str) -> None:
    path = record.objects["note.txt"].path
    if how == "missing":
        store.files.delete(path)
    else:
        store.files.write(path, {"cut short": "hel", "SHA-256": "hullo"}[how])


@pytest.mark.parametrize("how", ["missing", "cut short", "SHA-256"])
def test_a_damaged_object_is_set_aside_and_made_again(store: Store, how: str) -> None:
    record = commit(store)
    assert text_of(store, record) == "hello"
    spoil(store, record, how)
    with pytest.raises(CorruptObject, match=how) as caught, store.object(record, "note.txt"):
        raise AssertionError("it was handed out")
    assert (caught.value.key, caught.value.digest) == (record.key, record.digest)
    assert store.get(stage()) is None
    assert store.keys() == set()
    [folder] = store.files.list("quarantine")
    assert folder.startswith(f"{record.key}-")
    reason = json.loads(store.files.read(f"quarantine/{folder}/reason.json") or "")
    assert how in reason["reason"]
    assert store.files.exists(f"quarantine/{folder}/record.json")
    moved = f"quarantine/{folder}/{record.objects['note.txt'].path}"
    assert store.files.exists(moved) == (how != "missing")
    assert text_of(store, commit(store)) == "hello"


def test_what_was_made_again_meanwhile_stays(store: Store) -> None:
    old = commit(store)
    store.files.delete(f"records/{old.key}.json")
    new = commit(store)
    spoil(store, old, "SHA-256")
    with pytest.raises(CorruptObject), store.object(old, "note.txt"):
        raise AssertionError("it was handed out")
    assert store.get(stage()) == new
    assert text_of(store, new) == "hello"


def test_the_error_travels_between_processes(store: Store) -> None:
    record = commit(store)
    spoil(store, record, "SHA-256")
    with pytest.raises(CorruptObject) as caught, store.object(record, "note.txt"):
        raise AssertionError("it was handed out")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.key) == (str(caught.value), record.key)


def changed(record: Record, **values: Any) -> str:
    """With a checksum that fits: as another program, or another version, could have written it."""
    return seal(f"records/{record.key}.json", record.to_json() | values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"dig',
        "[]",
        "{}",
        lambda record: changed(record, metrics={"a": "much"}),
        lambda record: changed(record, digest="f" * 64),
        lambda record: changed(record, seed=77),
        lambda record: record.to_text().replace('"a": 1.0', '"a": 7.0'),
        lambda record: record.to_text().replace('"a": 1.0', '"b": 1.0'),
        lambda record: record.to_text().replace('"amount": 1', '"amount": 9'),
        lambda record: json.dumps(record.to_json()),
        lambda record: changed(record).replace(f"records/{record.key}.json", "records/x.json"),
        lambda record: seal(f"records/{'f' * 16}.json", record.to_json()),
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        lambda record: changed(record, surprise=1),
        lambda record: changed(record, objects={"note.txt": {"path": "objects/x"}}),
    ],
    ids=[
        "empty",
        "half",
        "list",
        "nothing",
        "text",
        "another's",
        "seed",
        "metric",
        "metric's name",
        "setting",
        "no seal",
        "moved",
        "copied",
        "deep",
        "rather deep",
        "surprise",
        "blob",
    ],
)
def test_a_damaged_record_is_set_aside_and_not_done(store: Store, text: Any) -> None:
    record = commit(store)
    written = text if isinstance(text, str) else text(record)
    store.files.write(f"records/{record.key}.json", written)
    assert store.get(stage()) is None
    assert store.keys() == set()
    [folder] = store.files.list("quarantine")
    assert store.files.read(f"quarantine/{folder}/record.json") == written
    assert text_of(store, commit(store)) == "hello"


def test_a_record_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = commit(store)
    (tmp_path / "records" / f"{record.key}.json").write_bytes(b"\xff\xfe\x00")
    assert store.get(stage()) is None


def test_a_file_in_another_format_is_set_aside_though_its_checksum_fits(store: Store) -> None:
    record = commit(store)
    refused = pytest.raises(CorruptObject, match=r"is damaged: no note of mine\. It was set aside")
    with refused, store.object(record, "note.txt"):
        raise UnreadableFile("no note of mine")
    assert store.get(stage()) is None
    assert store.lost == {record.key}
    assert text_of(store, commit(store)) == "hello"


IN_ITS_PLACE: dict[str, Any] = {
    "folder": lambda path: (path / "in").mkdir(parents=True),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to(path.parent.parent),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_is_no_file_is_damage_to_that_entry(tmp_path: Path, what: str) -> None:
    store = Store(tmp_path)
    record = commit(store)
    store.put_failure(stage(), Failure("no luck", None))
    put_checkpoint(store, 5)
    entries = [f"records/{record.key}.json", f"failures/{record.key}.json", "sweeps/mine.json"]
    entries += [record.objects["note.txt"].path, f"checkpoints/{'t' * 16}"]
    store.put_sweep("mine", {})
    for entry in map(tmp_path.joinpath, entries):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        IN_ITS_PLACE[what](entry)
    assert store.get(stage()) is None
    assert store.failures() == {}
    assert store.checkpoints("t" * 64) == []
    with pytest.raises(StoreError, match=r"sweeps/mine\.json is damaged \(it is "):
        store.sweep("mine")
    assert store.files.walk("records") == store.files.walk("failures") == []
    # All of it can be written again, and is what is there from then on.
    assert text_of(store, commit(store)) == "hello"
    put_checkpoint(store, 5)
    store.put_sweep("mine", {"a": 1})
    store.put_failure(stage(), Failure("again", None))
    assert store.sweep("mine") == {"a": 1}
    assert store.checkpoints("t" * 64) == [5]
    assert store.failures() == {record.key: Failure("again", None)}
    store.drop_checkpoints("t" * 64)
    assert store.checkpoints("t" * 64) == []


def test_a_record_that_nobody_may_read_is_set_aside() -> None:
    """As another user than root, who may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            store = Store(f"{folder}/store")
            path = Path(folder) / "store" / "records" / f"{commit(store).key}.json"
            path.chmod(0)
            assert store.get(stage()) is None
            assert store.keys() == set()
            assert text_of(store, commit(store)) == "hello"
        finally:
            os.seteuid(me)


def test_a_disk_that_is_not_mounted_loses_nothing(tmp_path: Path) -> None:
    """`objects` may be a link to another disk: without that, no record is damaged."""
    store = Store(tmp_path / "store")
    record = commit(store)
    objects = tmp_path / "store" / "objects"
    objects.rename(tmp_path / "disk")
    objects.symlink_to(tmp_path / "disk")
    assert text_of(store, record) == "hello"
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(StoreError, match=r"objects is a link that leads nowhere: bring back"):
        text_of(store, record)
    assert store.get(stage()) == record


def test_a_store_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record = commit(store)
    path = tmp_path / "store" / "records" / f"{record.key}.json"
    path.write_text("{")
    (tmp_path / "store" / "quarantine").write_text("in the way, as a mode would be")
    assert store.get(stage()) is None
    assert path.read_text() == "{"


def test_a_later_versions_record_is_refused_and_stays(store: Store) -> None:
    record = commit(store)
    store.files.write(f"records/{record.key}.json", changed(record, schema=3))
    with pytest.raises(StoreError, match="has schema 3 and this Resurge reads 2"):
        store.get(stage())
    assert store.keys() == {record.key}


# Checkpoints


def put_checkpoint(store: Store, step: int) -> None:
    with store.scratch() as folder:
        path = folder / "t"
        path.write_bytes(bytes([step]))
        store.put_checkpoint("t" * 64, step, path, {"step": step})


def test_the_latest_checkpoint_stays(store: Store) -> None:
    put_checkpoint(store, 5)
    put_checkpoint(store, 9)
    assert store.checkpoints("t" * 64) == [9]
    with store.checkpoint("t" * 64, 9) as (path, state):
        assert path.read_bytes() == bytes([9])
        assert state == {"step": 9}
    store.drop_checkpoints("t" * 64)
    assert store.checkpoints("t" * 64) == []


def test_a_checkpoint_without_its_state_is_not_one(store: Store) -> None:
    put_checkpoint(store, 5)
    store.files.delete(f"checkpoints/{'t' * 16}/train/5/checkpoint.json")
    assert store.checkpoints("t" * 64) == []


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("tensors.safetensors", "x", "SHA-256"),
        ("checkpoint.json", lambda text: text.replace('"step": 5', '"step": 1'), "its checksum"),
        ("checkpoint.json", lambda text: text.replace("train/5/", "train/9/"), "its checksum"),
        ("checkpoint.json", lambda text: "[" * 100_000, "nested too deeply"),
        ("checkpoint.json", lambda text: "", "it is no JSON"),
    ],
    ids=["tensors", "step", "place", "deep", "empty"],
)
def test_a_damaged_checkpoint_is_deleted(store: Store, name: str, text: Any, said: str) -> None:
    put_checkpoint(store, 5)
    path = f"checkpoints/{'t' * 16}/train/5/{name}"
    store.files.write(path, text if isinstance(text, str) else text(store.files.read(path)))
    with pytest.raises(StoreError, match=said), store.checkpoint("t" * 64, 5):
        raise AssertionError("it was handed out")
    assert store.checkpoints("t" * 64) == []


def test_a_checkpoint_that_cannot_be_loaded_is_deleted(store: Store) -> None:
    put_checkpoint(store, 5)
    refused = pytest.raises(StoreError, match=r"no tensors\. It was deleted")
    with refused, store.checkpoint("t" * 64, 5):
        raise UnreadableFile("no tensors")
    assert store.checkpoints("t" * 64) == []


# Failures and sweeps


def test_a_failure_is_forgotten_when_the_stage_is_done(store: Store) -> None:
    failure = Failure("no luck", "a.log", "nan", ((1, 0.5), (2, 0.25)))
    store.put_failure(stage(), failure)
    assert store.failures() == {stage().key: failure}
    commit(store)
    assert store.failures() == {}


def test_a_sweep_that_cannot_be_read_is_named(store: Store) -> None:
    store.put_sweep("mine", {"sweep": {}, "source": "name: mine"})
    assert store.sweeps() == ["mine"]
    store.files.write("sweeps/mine.json", "{")
    with pytest.raises(StoreError, match=r"sweeps/mine\.json is damaged.*delete it"):
        store.sweep("mine")


def test_nothing_in_the_store_is_a_pickle(store: Store) -> None:
    record = commit(store)
    text = store.files.read(f"records/{record.key}.json")
    assert json.loads(text or "")["metrics"] == {"a": 1.0}


# Names cannot leave it

AWAY = "../../x"


@pytest.fixture
def deep(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "b" / "store")


def test_names_cannot_leave_the_store(deep: Store, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text("hello")

    def refused(work: Any) -> None:
        with pytest.raises(StoreError, match="is no path in a store"):
            work()

    def enter(manager: Any) -> None:
        with manager:
            raise AssertionError("it was handed out")

    refused(lambda: deep.put_sweep(AWAY, {}))
    refused(lambda: deep.sweep(AWAY))
    refused(lambda: deep.record(AWAY))
    refused(lambda: deep.commit(stage(), {AWAY: note}, {}, "now", 1.0, {}))
    refused(lambda: deep.put_checkpoint("t" * 64, 1, note, {}, AWAY))
    refused(lambda: deep.checkpoints("t" * 64, AWAY))
    refused(lambda: enter(deep.checkpoint("t" * 64, 1, AWAY)))
    refused(lambda: deep.put_checkpoint("../../x", 1, note, {}))
    refused(lambda: deep.drop_checkpoints("../../x"))
    refused(lambda: deep.drop_checkpoints(""))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [note]


@pytest.mark.parametrize("name, path", [("note.txt", AWAY), (AWAY, "objects/{key}-1/n")])
def test_a_record_cannot_point_outside(deep: Store, tmp_path: Path, name: str, path: str) -> None:
    record = commit(deep)
    secret = tmp_path / "a" / "x"
    secret.write_text("secret")
    blob = {"path": path.format(key=record.key), "size_bytes": 6, "sha256": "0" * 64}
    deep.files.write(f"records/{record.key}.json", changed(record, objects={name: blob}))
    assert deep.get(stage()) is None
    assert secret.read_text() == "secret"
    [folder] = deep.files.list("quarantine")
    assert "outside the store" in (deep.files.read(f"quarantine/{folder}/reason.json") or "")
