"""Leases: one head at a time for a unit of work, whatever dies."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.core.liveness import SILENT_S, Watch
from orchestrator.executors.base import ExecutorSettings, WorkerKind, Workers
from orchestrator.executors.inline import Inline
from orchestrator.executors.simulated import Simulated
from orchestrator.messages import Task
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.leases import HEADS, LEASES, Head, Leases, read_heads, units
from orchestrator.schedule.scheduler import LOOK_EVERY_S, Scheduler
from orchestrator.store.sealed import seal
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.usefixtures("calls")


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tasks(small: str) -> Sequence[Task]:
    return make_tasks(make_plan(parse(small)), (), ())


def elsewhere(store: Store, sweep: str = "far", clock: Clock | None = None) -> Leases:
    """Those of a head on another machine, as far as anyone can tell."""
    leases = Leases(store, sweep, now_s=clock or Clock())
    leases.process = dataclasses.replace(leases.process, machine="another", host="far", pid=7)
    return leases


def files(store: Store) -> list[str]:
    root = Path(store.root)
    found = [*(root / HEADS).rglob("*"), *(root / LEASES).rglob("*")]
    return [str(path) for path in found if path.is_file()]


def test_a_unit_has_one_owner(store: Store, tasks: Sequence[Task]) -> None:
    with Leases(store, "a") as one, Leases(store, "b") as other:
        assert one.claim(tasks[0])
        assert not other.claim(tasks[0])
        assert other.claim(tasks[1])
        one.release(tasks[0])
        assert other.claim(tasks[0])


def test_tasks_that_overlap_in_one_unit_exclude_each_other(
    store: Store, tasks: Sequence[Task]
) -> None:
    first, second = tasks[0], tasks[1]
    both = dataclasses.replace(first, stages=(*second.stages, *first.stages))
    with Leases(store, "a") as one, Leases(store, "b") as other:
        assert one.claim(first)
        assert not other.claim(both)
        assert one.claim(second), "who is refused keeps nothing"


def test_nothing_is_left_behind(store: Store, tasks: Sequence[Task]) -> None:
    with Leases(store, "a") as one:
        for task in tasks:
            assert one.claim(task)
        assert files(store)
    assert not files(store)


def test_a_dead_heads_units_are_free(store: Store, tasks: Sequence[Task]) -> None:
    dead = Leases(store, "a")
    dead.beat()
    assert dead.claim(tasks[0])
    gone = dataclasses.replace(dead.process, born=dead.process.born - 1)
    store.files.write(
        f"{HEADS}/{gone.id}.json", _text(dataclasses.replace(read_heads(store)[0], process=gone))
    )
    with Leases(store, "b") as other:
        assert other.claim(tasks[0])


def _text(head: Head, **changed: object) -> str:
    return seal(f"{HEADS}/{head.process.id}.json", head.to_json() | changed)


def test_a_head_elsewhere_is_dead_when_it_was_silent_for_long(
    store: Store, tasks: Sequence[Task]
) -> None:
    clock = Clock()
    far = elsewhere(store, clock=clock)
    far.beat()
    assert far.claim(tasks[0])
    with Leases(store, "b", watch=Watch(clock, clock)) as other:
        assert not other.claim(tasks[0])
        clock.s += SILENT_S - 1
        far.beat()
        assert not other.claim(tasks[0])
        clock.s += SILENT_S - 1
        assert not other.claim(tasks[0])
        clock.s += 2
        assert other.claim(tasks[0])


def test_a_claim_without_a_head_is_nobodys(store: Store, tasks: Sequence[Task]) -> None:
    """Its head said goodbye, or was cleared away."""
    store.files.write(f"{LEASES}/{units(tasks[0])[0]}/0123456789ab", "")
    with Leases(store, "b") as other:
        assert other.claim(tasks[0])


def test_of_two_that_come_at_once_no_two_win(store: Store, tasks: Sequence[Task]) -> None:
    """The other's claim is there before this one looks."""
    with Leases(store, "a") as one, Leases(store, "b") as other:
        for unit in units(tasks[0]):
            store.files.write(f"{LEASES}/{unit}/{one.process.id}", "")
        assert not other.claim(tasks[0])
        assert one.claim(tasks[0])


def test_what_a_head_says_of_itself_can_be_read(store: Store) -> None:
    with Leases(store, "quick", priority=2.5) as leases:
        leases.wants = 3
        leases.running = [{"key": "0" * 16, "done": 5, "total": 10}]
        leases.beat()
        [head] = read_heads(store)
    assert (head.sweep, head.priority, head.wants) == ("quick", 2.5, 3)
    assert head.running == [{"key": "0" * 16, "done": 5, "total": 10}]
    assert head.process == leases.process


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"sweep": "ha',
        "[]",
        "{}",
        "7",
        "[" * 100_000,
        lambda head: json.dumps(head.to_json()),
        lambda head: _text(head).replace('"beat": 1', '"beat": 2'),
        lambda head: _text(head, at_s="noon"),
    ],
    ids=["empty", "half", "list", "nothing", "number", "deep", "no seal", "changed", "text"],
)
def test_a_head_that_cannot_be_read_is_nobody(
    store: Store, tasks: Sequence[Task], text: str | Callable[[Head], str]
) -> None:
    broken = elsewhere(store)
    broken.beat()
    assert broken.claim(tasks[0])
    [head] = read_heads(store)
    said = text if isinstance(text, str) else text(head)
    store.files.write(f"{HEADS}/{broken.process.id}.json", said)
    with Leases(store, "b") as other:
        assert other.others() == []
        assert other.claim(tasks[0]), "what it had is free"


class Turns:
    """A head with an inline worker, advanced by hand."""

    def __init__(self, plan: Plan, store: Store, root: Path, clock: Clock) -> None:
        self.executor = Inline(ExecutorSettings())
        self.executor.start()
        self.leases = Leases(store, "sweep", watch=Watch(clock, clock), now_s=clock)
        self.scheduler = Scheduler(
            make_tasks(plan, store.keys(), ()),
            store.keys(),
            self.executor,
            store,
            root / "logs",
            leases=self.leases,
            clock_s=clock,
        )


@pytest.mark.slow
def test_two_heads_do_every_stage_once(small: str, store: Store, tmp_path: Path) -> None:
    """They take turns, so that each finds what the other has under way, or has done."""
    plan, clock = make_plan(parse(small)), Clock()
    heads = [Turns(plan, store, tmp_path, clock) for _ in range(2)]
    with heads[0].leases, heads[1].leases:
        while any(head.scheduler.is_busy for head in heads):
            for head in heads:
                head.scheduler.advance(0)
            clock.s += LOOK_EVERY_S
    ran = [head.scheduler.outcome.ran for head in heads]
    assert ran[0] and ran[1]
    assert not ran[0] & ran[1]
    assert ran[0] | ran[1] == {stage.key for stage in plan.stages}
    assert all(head.scheduler.done >= (ran[0] | ran[1]) for head in heads)


class Elastic(Simulated):
    """Remembers how many workers it may have, of four that there is room for."""

    may_have = math.inf

    def workers(self) -> Workers:
        return dataclasses.replace(super().workers(), room=4)

    def adapt(self, wanted: Mapping[WorkerKind, int], may_have: float) -> None:
        self.may_have = may_have


def test_heads_share_the_room_by_priority(
    store: Store, tasks: Sequence[Task], tmp_path: Path
) -> None:
    executors = [Elastic(ExecutorSettings(workers=4)) for _ in range(2)]
    with Leases(store, "a", priority=3) as one, Leases(store, "b", priority=1) as other:
        clock = Clock()
        heads = []
        for executor, leases in zip(executors, (one, other), strict=True):
            executor.start()
            heads.append(
                Scheduler(tasks, (), executor, store, tmp_path, leases=leases, clock_s=clock)
            )
        heads[0].advance(0)
        assert executors[0].may_have == math.inf, "nobody else wants any"
        for leases in (one, other):
            leases.wants = 4
            leases.beat()
        clock.s += LOOK_EVERY_S
        for head in heads:
            head.advance(0)
        assert [executor.may_have for executor in executors] == [3, 1]
