"""The tasks that wait, by what they wait for: an event costs what it changes, not what there is."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from orchestrator.executors.base import FreeWorker, WorkerKind
from orchestrator.messages import Task
from orchestrator.schedule.leases import units


@dataclass(eq=False, slots=True)
class Entry:
    """A task that waits, and for what.

    Attributes:
        order: of two tasks with paths of one length, the one that came first goes first.
        need: what a worker must have for it.
        lacks: keys of what it reads that are not recorded yet.
        units: what it is leased by.
        after: digest of the model that it begins from, if that is not the base.
        is_paused: it is tried again later.
        is_elsewhere: another head does some of it.
        is_ready: it could start now.
    """

    task: Task
    order: int
    need: WorkerKind
    lacks: set[str]
    units: tuple[str, ...]
    after: str | None
    is_paused: bool = False
    is_elsewhere: bool = False
    is_ready: bool = False

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts what goes first before all others."""
        return -self.task.path_cost, self.order


@dataclass
class _Ready:
    """Those that could start now, longest path first. What is ready no more is passed over when its
    turn comes.
    """

    heap: list[tuple[float, int, Entry]] = field(default_factory=list)

    def push(self, entry: Entry) -> None:
        heapq.heappush(self.heap, (*entry.rank, entry))

    def first(self) -> Entry | None:
        while self.heap and not self.heap[0][2].is_ready:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None


class Queue:
    """Waiting tasks with an index of those that are ready, kept by what the scheduler tells.

    `wanted` counts the ready ones by what they need of a worker. `elsewhere` are those that another
    head had some of when they were last asked for.
    """

    def __init__(self) -> None:
        self.wanted: Counter[WorkerKind] = Counter()
        self.elsewhere: dict[Entry, None] = {}
        self._entries: dict[Entry, None] = {}
        self._order = itertools.count()
        self._by_key: dict[str, dict[Entry, None]] = defaultdict(dict)
        self._by_unit: dict[str, dict[Entry, None]] = defaultdict(dict)
        self._busy: set[str] = set()
        self._paused: list[tuple[float, int, Entry]] = []
        self._ready: dict[WorkerKind, _Ready] = defaultdict(_Ready)
        self._held: dict[tuple[str, WorkerKind], _Ready] = defaultdict(_Ready)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Task]:
        return (entry.task for entry in self._entries)

    def add(
        self, task: Task, need: WorkerKind, done: Collection[str], until_s: float = -math.inf
    ) -> Entry:
        """A task that waits for what is not in `done`, and until a point in time."""
        lacks = {stage.key for stage in task.waits_for if stage.key not in done}
        after = task.after.digest if task.after is not None else None
        entry = Entry(task, next(self._order), need, lacks, tuple(units(task)), after)
        self._entries[entry] = None
        for stage in task.waits_for:
            self._by_key[stage.key][entry] = None
        for unit in entry.units:
            self._by_unit[unit][entry] = None
        if until_s > -math.inf:
            entry.is_paused = True
            heapq.heappush(self._paused, (until_s, entry.order, entry))
        self._judge(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """It waits no more."""
        del self._entries[entry]
        self.elsewhere.pop(entry, None)
        for stage in entry.task.waits_for:
            self._forget(self._by_key, stage.key, entry)
        for unit in entry.units:
            self._forget(self._by_unit, unit, entry)
        self._set_ready(entry, False)

    def start(self, entry: Entry) -> None:
        """It runs from now on: nothing that shares a unit with it can start beside it."""
        self.remove(entry)
        self._busy.update(entry.units)
        self._judge_all(entry.units)

    def end(self, entry: Entry) -> None:
        """It runs no more."""
        self._busy.difference_update(entry.units)
        self._judge_all(entry.units)

    def recorded(self, key: str) -> None:
        """A stage is there."""
        for entry in self._by_key.get(key, ()):
            entry.lacks.discard(key)
            self._judge(entry)

    def gone(self, key: str) -> None:
        """A stage is there no more."""
        for entry in self._by_key.get(key, ()):
            entry.lacks.add(key)
            self._judge(entry)

    def reading(self, key: str) -> list[Entry]:
        """Those that wait, or waited, for a stage."""
        return list(self._by_key.get(key, ()))

    def leave(self, entry: Entry) -> None:
        """Another head does some of it."""
        entry.is_elsewhere = True
        self.elsewhere[entry] = None
        self._judge(entry)

    def ask_again(self) -> None:
        """What another head had may be free again."""
        left, self.elsewhere = self.elsewhere, {}
        for entry in left:
            entry.is_elsewhere = False
            self._judge(entry)

    def wake(self, now_s: float) -> None:
        """The pauses that are over by now."""
        while self._paused and self._paused[0][0] <= now_s:
            *_, entry = heapq.heappop(self._paused)
            entry.is_paused = False
            if entry in self._entries:
                self._judge(entry)

    def first(self) -> Entry | None:
        """Of what is ready, the one with the longest path."""
        return self._best(self._ready.values())

    def best_for(self, worker: FreeWorker) -> Entry | None:
        """What is ready and fits the worker: first what begins from the model that it holds, then
        by the length of the path.
        """
        fitting = [need for need, count in self.wanted.items() if count and worker.has.fits(need)]
        held = worker.holds
        if held is not None:
            heaps = [self._held[held, need] for need in fitting if (held, need) in self._held]
            if (entry := self._best(heaps)) is not None:
                return entry
        return self._best(self._ready[need] for need in fitting)

    def _best(self, heaps: Iterable[_Ready]) -> Entry | None:
        found = (entry for heap in heaps if (entry := heap.first()) is not None)
        return min(found, key=lambda entry: entry.rank, default=None)

    def _judge_all(self, names: Iterable[str]) -> None:
        for unit in names:
            for entry in self._by_unit.get(unit, ()):
                self._judge(entry)

    def _judge(self, entry: Entry) -> None:
        is_free = self._busy.isdisjoint(entry.units)
        waits = entry.lacks or entry.is_paused or entry.is_elsewhere
        self._set_ready(entry, is_free and not waits)

    def _set_ready(self, entry: Entry, is_ready: bool) -> None:
        if entry.is_ready == is_ready:
            return
        entry.is_ready = is_ready
        self.wanted[entry.need] += 1 if is_ready else -1
        if is_ready:
            self._ready[entry.need].push(entry)
            if entry.after is not None:
                self._held[entry.after, entry.need].push(entry)

    @staticmethod
    def _forget(index: dict[str, dict[Entry, None]], name: str, entry: Entry) -> None:
        left = index[name]
        left.pop(entry, None)
        if not left:
            del index[name]
