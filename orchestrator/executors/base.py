"""What an executor is to the scheduler: a few workers, tasks in, events out.

A new one is one file: `start`, `workers`, `submit`, `wait` and `shutdown`; its workers' side is in
worker.py. tests/conformance/test_executors.py says what it must do, and
tests/recording/process_pool.py is one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.plugin import Plugin
from orchestrator.messages import Event, PoolName, WorkOrder
from orchestrator.sweep.resources import ExecutorSettings

__all__ = [
    "Anything",
    "Event",
    "Executor",
    "ExecutorSettings",
    "FreeWorker",
    "WorkOrder",
    "WorkerKind",
    "Workers",
]


@dataclass(frozen=True)
class WorkerKind:
    """What a task needs of a worker, and what a worker has."""

    pool: PoolName = "model"
    whole_gpu: bool = False

    def fits(self, task: WorkerKind) -> bool:
        """Whether a worker that has this can do a task that needs that."""
        return self.pool == task.pool and (self.whole_gpu or not task.whole_gpu)


class Anything(WorkerKind):
    """What a worker has that takes whatever comes."""

    def fits(self, task: WorkerKind) -> bool:
        """It does."""
        return True


@dataclass(frozen=True)
class FreeWorker:
    """A worker without a task. `holds` is the digest of the model in its memory."""

    name: str
    holds: str | None
    has: WorkerKind = field(default_factory=Anything)


@dataclass(frozen=True)
class Workers:
    """How much can run.

    `free` could take a task now. `most` is how many tasks run at a time once every worker is up,
    `room` how many workers the machines have room for, whoever's they are. `shares_gpu` says that
    each has less than a GPU, so that a whole one would be more.
    """

    free: Sequence[FreeWorker]
    most: int
    room: float = math.inf
    shares_gpu: bool = False


class Executor(Plugin):
    """Runs tasks on workers. Used by one thread, the scheduler's.

    `submit` returns at once (or, inline, when the task is over); what happens is told by `wait`, in
    order for each task. Every submitted task ends with one TaskEnded, TaskHandedBack or WorkerLost,
    unless the executor is shut down first. Used as a context manager.
    """

    kind = "executor"
    Settings = ExecutorSettings

    @abstractmethod
    def start(self) -> None:
        """Bring the workers up."""

    @abstractmethod
    def workers(self) -> Workers:
        """How much can run, as things are now; `most` and `shares_gpu` stay as they are."""

    @abstractmethod
    def submit(self, order: WorkOrder, worker: str) -> None:
        """Give a task to a free worker."""

    @abstractmethod
    def wait(self, timeout_s: float) -> Sequence[Event]:
        """All that has happened since the last call; blocks until there is something, or time."""

    def adapt(self, wanted: Mapping[WorkerKind, int], may_have: float) -> None:
        """Told before work is given out: how many workers would be of use, by what they need, and
        how many there may be beside other sweeps'. Those with a fixed number do nothing.
        """

    def lacks(self) -> str:
        """What no worker can have as things are, in words, so that nothing starts; mostly empty."""
        return ""

    def abandon(self, task_id: str, reason: str) -> None:
        """Take a task from its worker, which is hung: WorkerLost follows. Where that cannot be
        done, nothing happens.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Stop every worker at once; what was not committed is lost. May be called twice."""

    def __enter__(self) -> Executor:
        try:
            self.start()
        except BaseException:  # a Ctrl-C as well: what has started is not left behind
            self.shutdown()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
