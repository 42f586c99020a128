"""Queue: after any sequence of events it offers what looking at every waiting task would find."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from orchestrator.core.stage import Stage
from orchestrator.executors.base import FreeWorker, WorkerKind
from orchestrator.messages import Task
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.leases import units
from orchestrator.schedule.queue import Entry, Queue
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.usefixtures("calls")

KINDS = (WorkerKind(), WorkerKind("model", True), WorkerKind("score"))
SWEEP = """
name: queue
base: shapes
concept: [star, circle]
edits:
  - unlearn: [uce, esd, salun]
  - finetune: {dataset: [related, digits], learning_rate: [1e-4, 1e-3], steps: [5, 10]}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 1}
seeds: 2
"""


@dataclass
class Everything:
    """The same, by looking at every task each time."""

    done: set[str] = field(default_factory=set)
    waiting: list[Entry] = field(default_factory=list)
    busy: list[Entry] = field(default_factory=list)
    elsewhere: set[Entry] = field(default_factory=set)
    until_s: dict[Entry, float] = field(default_factory=dict)
    now_s: float = 0.0

    def ready(self) -> list[Entry]:
        taken = {unit for entry in self.busy for unit in units(entry.task)}
        return [
            entry
            for entry in self.waiting
            if entry not in self.elsewhere
            and self.until_s[entry] <= self.now_s
            and all(stage.key in self.done for stage in entry.task.waits_for)
            and taken.isdisjoint(units(entry.task))
        ]

    def best_for(self, worker: FreeWorker) -> Entry | None:
        def rank(entry: Entry) -> tuple[bool, float]:
            after = entry.task.after
            return after is not None and after.digest == worker.holds, entry.task.path_cost

        fitting = (entry for entry in self.ready() if worker.has.fits(entry.need))
        return next(iter(sorted(fitting, key=rank, reverse=True)), None)


@pytest.fixture(scope="module")
def tasks() -> tuple[Task, ...]:
    return make_tasks(make_plan(parse(SWEEP)), (), ("unlearned",), True)


@pytest.mark.parametrize("seed", range(8))
def test_it_offers_what_looking_at_everything_finds(tasks: Sequence[Task], seed: int) -> None:
    rng, queue, truth = random.Random(seed), Queue(), Everything()
    stages = [stage for task in tasks for stage in task.stages]
    models = [None, *(task.after.digest for task in tasks if task.after)]
    left, offered = list(tasks), Counter[bool]()

    def add(task: Task) -> None:
        until_s = rng.choice([-math.inf, truth.now_s + rng.random()])
        entry = queue.add(task, rng.choice(KINDS), truth.done, until_s)
        truth.waiting.append(entry)
        truth.until_s[entry] = until_s

    def record(stage: Stage) -> None:
        truth.done.add(stage.key)
        queue.recorded(stage.key)

    def lose(stage: Stage) -> None:
        truth.done.discard(stage.key)
        queue.gone(stage.key)

    def start(entry: Entry) -> None:
        queue.start(entry)
        truth.waiting.remove(entry)
        truth.elsewhere.discard(entry)
        truth.busy.append(entry)

    for _ in range(400):
        what = rng.random()
        if what < 0.2 and left:
            add(left.pop(rng.randrange(len(left))))
        elif what < 0.55:
            record(rng.choice(stages))
        elif what < 0.6:
            lose(rng.choice(stages))
        elif what < 0.7 and truth.busy:
            over = truth.busy.pop(rng.randrange(len(truth.busy)))
            queue.end(over)
            if rng.random() < 0.5:
                add(over.task)
        elif what < 0.75 and truth.waiting:
            gone = rng.choice(truth.waiting)
            queue.remove(gone)
            truth.waiting.remove(gone)
            truth.elsewhere.discard(gone)
        elif what < 0.8:
            queue.ask_again()
            truth.elsewhere.clear()
        truth.now_s += 0.05
        queue.wake(truth.now_s)
        worker = FreeWorker("worker", rng.choice(models), rng.choice(KINDS))
        best = truth.best_for(worker)
        assert queue.best_for(worker) is best
        assert +queue.wanted == Counter(entry.need for entry in truth.ready())
        assert len(queue) == len(truth.waiting)
        assert list(queue) == [entry.task for entry in truth.waiting]
        offered[best is not None] += 1
        if best is not None and rng.random() < 0.3:
            start(best)
        elif best is not None and rng.random() < 0.3:
            queue.leave(best)
            truth.elsewhere.add(best)
    assert min(offered.values()) > 20, "both answers were given"


def test_those_that_read_a_stage_are_told(tasks: Sequence[Task]) -> None:
    queue, entries = Queue(), []
    for task in tasks:
        entries.append(queue.add(task, KINDS[0], ()))
    read = next(task for task in tasks if task.after).after
    assert read is not None
    readers = [e for e in entries if read.key in {s.key for s in e.task.waits_for}]
    assert queue.reading(read.key) == readers
    queue.remove(readers[0])
    assert queue.reading(read.key) == readers[1:]
