"""Store: atomic commits, comparison on a hit, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StoreError
from orchestrator.stage import Stage
from orchestrator.store import Record, Store

BASE = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {}}, None, None)


def stage(default: Any = 1, **more: Any) -> Stage:
    settings = {"settings": {"amount": default, **more}}
    return Stage("unlearn", "nudge", 3, {"settings": {}}, settings, None, BASE)


def commit(store: Store, text: str = "hello", which: Stage | None = None) -> Record:
    with store.scratch() as folder:
        path = folder / "note.txt"
        path.write_text(text)
        return store.commit(which or stage(), {"note.txt": path}, {"a": 1.0}, "now", 2.0, {})


@pytest.fixture(params=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path if request.param == "folder" else tmp_path.as_uri())


def test_a_record_comes_back_as_it_was_committed(store: Store) -> None:
    committed = commit(store)
    assert store.get(stage()) == committed
    assert store.keys() == {stage().key}
    with store.object(committed, "note.txt") as path:
        assert path.read_text() == "hello"
    assert len(committed.digest) == 64


def test_the_first_commit_wins(store: Store) -> None:
    first = commit(store, "first")
    assert commit(store, "second") == first
    with store.object(first, "note.txt") as path:
        assert path.read_text() == "first"


def test_a_commit_without_its_record_is_not_there(store: Store, tmp_path: Path) -> None:
    commit(store)
    (tmp_path / "records" / f"{stage().key}.json").unlink()
    assert store.get(stage()) is None
    assert store.keys() == set()
    assert commit(store, "again") == store.get(stage())


def test_a_half_written_record_is_not_seen(store: Store, tmp_path: Path) -> None:
    commit(store)
    (tmp_path / "records" / ".0123").write_text('{"dig')
    assert store.keys() == {stage().key}


def test_a_moved_default_is_refused_with_the_version_to_raise(store: Store) -> None:
    commit(store)
    with pytest.raises(StoreError, match=r"nudge.*amount was 1 and is 2.*version.*from 3 to 4"):
        store.get(stage(default=2))


def test_a_new_setting_with_a_default_is_not_a_moved_one(store: Store) -> None:
    commit(store)
    assert store.get(stage(newcomer=True)) is not None


def test_a_file_cut_short_is_noticed(store: Store, tmp_path: Path) -> None:
    record = commit(store)
    (tmp_path / record.objects["note.txt"].path).write_text("hel")
    with pytest.raises(StoreError, match="cut short"), store.object(record, "note.txt"):
        raise AssertionError("it was handed out")


def test_an_object_that_was_not_kept(store: Store) -> None:
    record = commit(store)
    with pytest.raises(StoreError, match="kept no 'weights'"), store.object(record, "weights"):
        raise AssertionError("it was handed out")


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


def test_a_checkpoint_without_its_state_is_not_one(store: Store, tmp_path: Path) -> None:
    put_checkpoint(store, 5)
    (tmp_path / "checkpoints" / ("t" * 16) / "train" / "5" / "state.json").unlink()
    assert store.checkpoints("t" * 64) == []


def test_a_failure_is_forgotten_when_the_stage_is_done(store: Store) -> None:
    store.put_failure(stage(), "no luck", "a.log")
    assert store.failures()[stage().key]["message"] == "no luck"
    commit(store)
    assert store.failures() == {}


def test_nothing_in_the_store_is_a_pickle(store: Store, tmp_path: Path) -> None:
    record = commit(store)
    text = (tmp_path / "records" / f"{record.key}.json").read_text()
    assert json.loads(text)["metrics"] == {"a": 1.0}
