"""One worker in this very process: for debugging and for tests."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker
from orchestrator.messages import Event, TaskEnded, TaskHandedBack, WorkOrder


class Inline(Executor):
    """One task at a time in this process; a breakpoint in a plug-in works."""

    name = "inline"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self.events: list[Event] = []
        self.runner: Any = None

    def start(self) -> None:
        """Import the worker's code; torch comes with it."""
        self.runner = importlib.import_module("workers.runner").Runner()

    def capacity(self) -> int:
        """One."""
        return 1

    def free_workers(self) -> Sequence[FreeWorker]:
        """The one worker, unless its events have not been fetched yet."""
        return [] if self.events else [FreeWorker("inline", self.runner.holds)]

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Run the task to its end."""
        if self.runner.run(order, self.events.append):
            self.events.append(TaskEnded(order.task.id, worker, self.runner.holds))
        else:
            self.events.append(TaskHandedBack(order.task.id, worker))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """The events of the last task."""
        events, self.events = self.events, []
        return events

    def shutdown(self) -> None:
        """Forget the warm model."""
        self.runner = None
