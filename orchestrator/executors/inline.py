"""One worker in this very process: for debugging and for tests."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker, Workers
from orchestrator.executors.worker import work
from orchestrator.messages import Event, WorkOrder


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

    def workers(self) -> Workers:
        """The one worker, free unless its events have not been fetched yet."""
        return Workers([] if self.events else [FreeWorker("inline", self.runner.holds)], most=1)

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Run the task to its end."""
        work(self.runner, order, worker, self.events.append)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """The events of the last task."""
        events, self.events = self.events, []
        return events

    def shutdown(self) -> None:
        """Forget the warm model."""
        self.runner = None
