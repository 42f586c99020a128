"""The index beside a store's files: a copy that may be gone, old, damaged or locked."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.store.files import Files
from orchestrator.store.index import NAME, Index
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from tests.orchestrator import synthetic

TEXT = """
name: packed
base: shapes
concept: star
edits: [{unlearn: [uce, esd]}, {finetune: {dataset: related, learning_rate: 1.0e-3, steps: 50}}]
evaluate: {metrics: [concept_accuracy], images_per_prompt: 4}
seeds: 1
"""


@pytest.fixture
def plan() -> Plan:
    return make_plan(parse(TEXT))


@pytest.fixture
def root(tmp_path: Path, plan: Plan) -> Path:
    synthetic.commit(Store(tmp_path), plan)
    return tmp_path


def measured(root: Path, plan: Plan, packed: bool = True) -> list[Measured]:
    store = Store(root)
    return TrialReader(plan, store.packed() if packed else store).all()


def files_read(root: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What measuring all trials opens of the store."""
    opened: list[str] = []
    read, as_local = Files.read_bytes, Files.as_local
    with monkeypatch.context() as spies:
        spies.setattr(
            Files, "read_bytes", lambda files, path: opened.append(path) or read(files, path)
        )
        spies.setattr(
            Files, "as_local", lambda files, path: opened.append(path) or as_local(files, path)
        )
        measured(root, plan)
    return opened


def test_the_numbers_are_those_of_the_files(root: Path, plan: Plan) -> None:
    plain = measured(root, plan, packed=False)
    assert measured(root, plan) == plain
    assert measured(root, plan) == plain


def test_what_was_read_once_is_not_opened_again(
    root: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = [stage for stage in plan.stages if stage.kind != "base"]
    assert len(files_read(root, plan, monkeypatch)) > len(recorded)
    assert files_read(root, plan, monkeypatch) == []
    record = next((root / "records").iterdir())
    os.utime(record)
    assert files_read(root, plan, monkeypatch) == [f"records/{record.name}"]


def test_damage_is_seen_behind_the_index(root: Path, plan: Plan) -> None:
    measured(root, plan)
    score = next(stage for stage in plan.stages if stage.kind == "score")
    record = Store(root).record(score.key)
    assert record is not None
    [blob] = record.objects.values()
    path = root / blob.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store = Store(root).packed()
    TrialReader(plan, store).all()
    assert store.lost == {score.key}
    assert not (root / "records" / f"{score.key}.json").exists()


@pytest.mark.parametrize("harm", ["rubbish", "cut", "other rows", "gone", "another's table"])
def test_a_damaged_index_is_made_anew(root: Path, plan: Plan, harm: str) -> None:
    plain = measured(root, plan, packed=False)
    measured(root, plan)
    index = root / NAME
    match harm:
        case "rubbish":
            index.write_bytes(b"no database at all, and longer than a header of SQLite" * 100)
        case "cut":
            index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
        case "other rows":
            with sqlite3.connect(index) as connection:
                connection.execute("UPDATE read SET data = (SELECT data FROM read LIMIT 1)")
        case "gone":
            index.unlink()
        case "another's table":
            index.unlink()
            with sqlite3.connect(index) as connection:
                connection.execute("CREATE TABLE read (other TEXT)")
    for _ in range(3):
        assert measured(root, plan) == plain
    with sqlite3.connect(index) as connection:
        assert connection.execute("SELECT count(data) FROM read").fetchone()[0] > 10


def test_a_locked_index_keeps_nobody_waiting(root: Path, plan: Plan) -> None:
    plain = measured(root, plan)
    (root / "records" / f"{plan.stages[-1].key}.json").touch()  # there is something to write
    with sqlite3.connect(root / NAME, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert measured(root, plan) == plain
    assert measured(root, plan) == plain


def test_an_entry_is_of_one_file_as_it_was(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put("a", "1", b"first")
    assert index.get("a", "1") == b"first" and index.get("a", "2") is None
    index.flush()
    again = Index(tmp_path)
    assert again.get("a", "1") == b"first"
    assert again.get("a", "2") is None and again.get("b", "1") is None


def test_a_bucket_has_none() -> None:
    store = Store("s3://bucket/prefix")
    assert store.packed() is store and store._index is None
