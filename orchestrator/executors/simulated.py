"""A virtual clock: what a plan would cost on so many workers, without running anything."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

from orchestrator.core.artifacts import Cause, Failure
from orchestrator.core.stage import Stage
from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker, Workers
from orchestrator.messages import (
    Event,
    LossCause,
    StageCommitted,
    StageFailed,
    TaskEnded,
    WorkerLost,
    WorkOrder,
)
from orchestrator.store.store import Record


class Simulated(Executor):
    """Pretend to run, on a virtual clock: for looking at schedules.

    Args:
        settings: `workers` workers ("auto" is 2).
        seconds_of: how long a stage takes.
        dies: whether the worker dies in a stage's middle, or how; asked once a stage begun.
        fails: why a stage of an order raises; None if it does not. The task ends there.
        hangs: whether nothing is heard any more from the stage on.
        shares_gpu: whether each worker has less than a GPU.
    """

    name = "simulated"

    def __init__(
        self,
        settings: ExecutorSettings,
        seconds_of: Callable[[Stage], float] = lambda stage: 1.0,
        dies: Callable[[Stage], bool | LossCause] = lambda stage: False,
        fails: Callable[[WorkOrder, Stage], Cause | None] = lambda order, stage: None,
        hangs: Callable[[Stage], bool] = lambda stage: False,
        shares_gpu: bool = False,
    ) -> None:
        super().__init__(settings)
        self.seconds_of = seconds_of
        self.dies = dies
        self.fails = fails
        self.hangs = hangs
        self.shares_gpu = shares_gpu
        self.orders: list[WorkOrder] = []
        self.now_s = 0.0
        self.holds: dict[str, str | None] = {}
        self._free: dict[str, None] = {}
        self.history: list[tuple[float, str, str]] = []
        self._queue: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._hung: dict[str, str] = {}

    def start(self) -> None:
        """Workers without a model."""
        given = self.settings.workers
        count = given if isinstance(given, int) else 2 if given == "auto" else given.max
        self.holds = {f"worker-{index}": None for index in range(count)}
        self._free = dict.fromkeys(self.holds)

    def workers(self) -> Workers:
        """As many as were asked for; those without a task are free."""
        free = [FreeWorker(name, self.holds[name]) for name in self._free]
        return Workers(free, len(self.holds), shares_gpu=self.shares_gpu)

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Put the task's events on the clock; `history` gets (start, worker, task)."""
        del self._free[worker]
        self.history.append((self.now_s, worker, order.task.id))
        self.orders.append(order)
        at = self.now_s
        for stage in order.task.stages:
            at += self.seconds_of(stage)
            if how := self.dies(stage):
                kind: LossCause = "death" if how is True else how
                self._at(at, WorkerLost(order.task.id, worker, "simulated death", kind))
                return
            if self.hangs(stage):
                self._hung[order.task.id] = worker
                return
            if cause := self.fails(order, stage):
                failure = Failure(f"simulated {cause}", "", cause)
                self._at(at, StageFailed(order.task.id, stage.key, failure))
                break
            record = Record.of(stage, {}, {}, started="", seconds=0.0, provenance={})
            self._at(at, StageCommitted(order.task.id, stage.key, record))
        holds = order.task.stages[-1].model.digest
        self._at(at, TaskEnded(order.task.id, worker, holds))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Move the clock to the next event."""
        if not self._queue:
            self.now_s += timeout_s
            return []
        self.now_s, _, event = heapq.heappop(self._queue)
        if isinstance(event, TaskEnded):
            self.holds[event.worker] = event.holds
        if isinstance(event, TaskEnded | WorkerLost):
            self._free[event.worker] = None
        return [event]

    def abandon(self, task_id: str, reason: str) -> None:
        """Give the hung worker a new life."""
        worker = self._hung.pop(task_id)
        self._at(self.now_s, WorkerLost(task_id, worker, reason, "hang"))

    def shutdown(self) -> None:
        """Nothing to stop."""

    def _at(self, when_s: float, event: Event) -> None:
        heapq.heappush(self._queue, (when_s, next(self._order), event))
