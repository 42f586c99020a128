"""What an executor is to the scheduler: a few workers, tasks in, events out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from orchestrator.plugin import Plugin, Settings
from orchestrator.work import Event, WorkOrder


@dataclass(frozen=True)
class FreeWorker:
    """A worker without a task. `holds` is the digest of the model in its memory."""

    name: str
    holds: str | None


class ExecutorSettings(Settings):
    """How many workers, and what each of them gets."""

    workers: int | Literal["auto"] = Field("auto", description="workers; auto: one a GPU, else 2")
    gpus: float | Literal["auto"] = Field("auto", description="GPUs a worker; may be a fraction")
    threads: int | Literal["auto"] = Field("auto", description="CPU threads a worker")


class Executor(Plugin):
    """Runs tasks on workers. Used by one thread, the scheduler's.

    `submit` returns at once (or, inline, when the task is over); what happens is told by `wait`, in
    order for each task. Every submitted task ends with one TaskEnded or WorkerLost, unless the
    executor is shut down first. Used as a context manager.
    """

    kind = "executor"
    Settings = ExecutorSettings

    @abstractmethod
    def start(self) -> None:
        """Bring the workers up."""

    @abstractmethod
    def capacity(self) -> int:
        """How many tasks run at a time once every worker is up."""

    @abstractmethod
    def free_workers(self) -> Sequence[FreeWorker]:
        """The workers that could take a task now."""

    @abstractmethod
    def submit(self, order: WorkOrder, worker: str) -> None:
        """Give a task to a free worker."""

    @abstractmethod
    def wait(self, timeout_s: float) -> Sequence[Event]:
        """All that has happened since the last call; blocks until there is something, or time."""

    @abstractmethod
    def shutdown(self) -> None:
        """Stop every worker at once; what was not committed is lost. May be called twice."""

    def __enter__(self) -> Executor:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
