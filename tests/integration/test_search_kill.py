"""kill -9 of a search, again and again: every trial is there once, and none hangs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.store.store import Store
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import read_studies
from orchestrator.study.tried import Tried, counted
from orchestrator.study.worst_case import asked_plan
from orchestrator.sweep.space import point_key
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import load

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("calls")]

TRIALS, KILLS = 12, 10
RUN_TIMEOUT_S = 300
LONGEST_DELAY_S = 1.0

HUNT = f"""
name: hunt
base: tiny
concept: star
edits:
  - unlearn: dim
  - finetune: {{dataset: dots, batch_size: 2}}
evaluate: {{metrics: [glow], images_per_prompt: 1, retain: [], controls: false}}
search:
  maximize: resurgence
  space:
    finetune.learning_rate: {{log: [1.0e-3, 1.0e-1]}}
    finetune.steps: {{int: [1, 3]}}
  sampler: tpe
  pruner: median
  trials: {TRIALS}
  parallel: 2
  confirm: {{top: 1, seeds: 2}}
resources: {{executor: inline}}
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the search; what is still running in the end is ended."""
    path = tmp_path / "hunt.yaml"
    path.write_text(HUNT)
    resurge = Path(sys.executable).parent / "resurge"
    command = [str(resurge), "search", str(path), "--home", str(tmp_path / "home")]
    begun: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        output = (tmp_path / f"output-{len(begun)}.txt").open("w")
        begun.append(subprocess.Popen(command, stdout=output, stderr=output, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


class Place:
    """What the search leaves behind."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.sweep: Sweep = load(root / "hunt.yaml")
        self.points = PointPlanner(self.sweep)
        self.store = Store(self.home / "store")

    def mark(self) -> tuple[int, int]:
        """Changes whenever the study or the store does."""
        database = self.home / "studies.db"
        changed_ns = database.stat().st_mtime_ns if database.exists() else 0
        return changed_ns, len(self.records())

    def records(self) -> dict[str, str]:
        folder = self.home / "store" / "records"
        return {p.name: p.read_text() for p in folder.glob("[!.]*.json")} if folder.exists() else {}

    def tried(self) -> list[Tried]:
        [(_, _, tried)] = read_studies(self.points, f"sqlite:///{self.home / 'studies.db'}")
        return tried


def wait_for_a_change(place: Place, process: subprocess.Popen[str]) -> bool:
    """Until the search has done something; False if it ended."""
    before = place.mark()
    while place.mark() == before:
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        return False
    return True


def kill_soon(process: subprocess.Popen[str], delay_s: float) -> bool:
    """Whether it was still running then."""
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_a_search_that_is_killed_again_and_again_loses_nothing(
    tmp_path: Path, begin: Callable[[], subprocess.Popen[str]]
) -> None:
    chance = random.Random(time.time_ns())
    kills, records = 0, dict[str, str]()
    place: Place | None = None
    for _ in range(KILLS):
        process = begin()
        place = place or Place(tmp_path)
        if not wait_for_a_change(place, process):
            break
        kills += kill_soon(process, chance.uniform(0, LONGEST_DELAY_S))
        now = place.records()
        assert now.items() >= records.items(), "a record was made again"
        records = now
    assert place is not None
    assert kills >= KILLS / 2, "the search ended too soon to be killed"
    assert begin().wait(timeout=RUN_TIMEOUT_S) == 0, outputs(tmp_path)
    assert "Traceback" not in outputs(tmp_path)
    assert place.records().items() >= records.items()
    check(place)
    before = place.mark()
    assert begin().wait(timeout=RUN_TIMEOUT_S) == 0
    assert place.mark() == before, "a search that is done did something"


def test_a_second_head_on_the_same_study_is_refused(
    tmp_path: Path, begin: Callable[[], subprocess.Popen[str]]
) -> None:
    first = begin()
    place = Place(tmp_path)
    while not place.records():
        assert wait_for_a_change(place, first), outputs(tmp_path)
    second = begin()
    assert second.wait(timeout=RUN_TIMEOUT_S) == 2
    [said] = [p.read_text() for p in tmp_path.glob("output-1.txt")]
    assert f"process {first.pid} on" in said and "runs this search already" in said
    assert "Traceback" not in said
    assert first.wait(timeout=RUN_TIMEOUT_S) == 0, outputs(tmp_path)
    check(place)


def check(place: Place) -> None:
    """Every trial of the budget is there, once, with its stages."""
    tried = place.tried()
    assert [t.number for t in tried] == list(range(len(tried)))
    mine = counted(tried)
    assert len(mine) == TRIALS
    assert {t.state for t in mine} <= {"done", "pruned"}
    assert "running" not in {t.state for t in tried}
    assert len({point_key(t.point) for t in mine}) == TRIALS
    stages = asked_plan(place.points, [("hunt", {}, tried)]).stages
    missing = [stage for stage in stages if place.store.get(stage) is None]
    assert not missing
    for trial in mine:
        if trial.state == "done":
            plan = place.points.plan(place.points.trials(trial.point))
            again = place.points.numbers(plan, place.store, trial.point)
            assert trial.values == (again.found["resurgence"],)
    left = place.home / "store" / "checkpoints"
    assert not [path for path in left.rglob("*") if path.is_file()]


def outputs(root: Path) -> str:
    """All that was printed, the last first."""
    paths = sorted(root.glob("output-*.txt"), key=lambda path: path.stat().st_mtime_ns)
    return "\n".join(path.read_text() for path in reversed(paths))
