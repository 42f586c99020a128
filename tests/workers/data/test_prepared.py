"""Prepared data sets: made once, read back the same, refused with every bad row."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.artifacts import DATASET
from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.inline import Inline
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Outcome, Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from workers.data.prepared import numbers_of, read_examples, write_examples
from workers.datasets.nearest import Nearest
from workers.interfaces.dataset import Examples

BRIEF = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3")


def some(distances: tuple[float, ...] = ()) -> Examples:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return Examples(images, ("one", "two", "two"), ("a", "b", "c"), distances)


@pytest.mark.parametrize("distances", [(), (0.1, 0.25, 0.5)])
def test_what_was_written_is_read(tmp_path: Path, distances: tuple[float, ...]) -> None:
    write_examples(tmp_path / "file", some(distances))
    again = read_examples(tmp_path / "file")
    assert np.array_equal(again.images, some().images)
    assert again.captions == some().captions
    assert again.sources == some().sources
    assert again.distances == distances


def test_the_file_lists_every_picture_by_its_digest(tmp_path: Path) -> None:
    write_examples(tmp_path / "file", some())
    table = pq.read_table(tmp_path / "file")
    assert table.schema.equals(DATASET.schema, check_metadata=True)
    for row in table.to_pylist():
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
        assert row["distance"] is None


def test_a_record_has_the_size_and_the_distances() -> None:
    assert numbers_of(some()) == {"examples": 3, "size_px": 8}
    numbers = numbers_of(some((0.1, 0.25, 0.4)))
    assert numbers["distance_min"] == 0.1
    assert numbers["distance_mean"] == pytest.approx(0.25)
    assert numbers["distance_max"] == 0.4


def run(plan: Plan, store: Store) -> Outcome:
    done = {stage.key for stage in plan.stages if store.get(stage)}
    with Inline(ExecutorSettings()) as executor:
        tasks = make_tasks(plan, done, ())
        return Scheduler(tasks, done, executor, store, Path(store.root) / "logs").run()


def test_a_sweep_makes_its_data_once(small: str, tmp_path: Path, calls) -> None:
    store = Store(tmp_path / "store")
    plan = make_plan(parse(small, None, BRIEF))
    assert run(plan, store).ok
    assert calls().count("dots 128") == 1
    [stage] = [stage for stage in plan.stages if stage.kind == "prepare"]
    record = store.get(stage)
    assert record is not None
    assert record.metrics == {"examples": 4, "size_px": 32}
    with store.object(record, "dataset.parquet") as path:
        assert pq.read_table(path)["source"].to_pylist() == [f"dots: {i}" for i in range(4)]
    tuned = [store.get(stage) for stage in plan.stages if stage.kind == "finetune"]
    assert {t.inputs["dataset"] for t in tuned if t} == {record.digest}
    assert run(make_plan(parse(small, None, (*BRIEF, "seeds=2"))), store).ok
    assert "dots 128" not in calls()


def test_bad_data_stop_what_reads_them_before_anything_is_computed(
    small: str, tmp_path: Path, calls
) -> None:
    """A picture that is cut short is found when it is decoded, which planning does not do."""
    data = tmp_path / "data"
    data.mkdir()
    Image.effect_noise((20, 20), 50).save(data / "a.png")
    (data / "a.png").write_bytes((data / "a.png").read_bytes()[:-60])
    (data / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' * 2)
    choice = f"finetune.dataset={{folder: {{path: {data}}}}}"
    plan = make_plan(parse(small, None, (*BRIEF, "evaluate.controls=false", choice)))
    outcome = run(plan, Store(tmp_path / "store"))
    [failed] = outcome.failed.values()
    assert failed.cause == "input"
    assert "2 bad rows\n  row 1 (a.png)" in failed.message
    assert "row 2 (a.png)" in failed.message
    assert "unlearn 0.01" not in calls()


def test_distances_are_prepared_too(tmp_path: Path) -> None:
    chosen = Nearest(Nearest.Settings(of={"related": {"size": 12}}, k=4))
    write_examples(tmp_path / "file", chosen.examples("star", 32).named("nearest"))
    rows = pq.read_table(tmp_path / "file").to_pylist()
    assert [row["distance"] for row in rows] == sorted(row["distance"] for row in rows)
    assert all(row["source"].startswith("nearest: related: ") for row in rows)
