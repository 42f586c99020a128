"""A worker's side of an executor: the runner, its events, a hand-back when asked to leave."""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.messages import Event, TaskEnded, TaskHandedBack, WorkOrder


def work(runner: Any, order: WorkOrder, worker: str, tell: Callable[[Event], None]) -> None:
    """Run a task and tell of it; the last event says whether it is over."""
    if runner.run(order, tell):
        tell(TaskEnded(order.task.id, worker, runner.holds))
    else:
        tell(TaskHandedBack(order.task.id, worker))


def load_workers() -> None:
    """Import our package `workers`, where the user may have another one of that name installed."""
    beside_us = str(Path(orchestrator.__file__).parents[1])
    sys.path.insert(0, beside_us)
    try:
        importlib.import_module("workers")
    finally:
        sys.path.remove(beside_us)


class WorkerProcess:
    """What a process that is a worker has; it keeps its model warm from task to task.

    Of several GPUs it uses all to fine-tune a model, and the first for everything else. SIGTERM
    asks it to leave: it hands its task back, and is of no use from then on.
    """

    def __init__(self, threads: int, gpus: float = 0.0) -> None:
        # What it starts itself (training on several GPUs) imports nothing from this folder.
        os.environ["PYTHONSAFEPATH"] = "1"
        importlib.import_module("torch").set_num_threads(threads)
        load_workers()
        module = importlib.import_module("workers.runner")
        self.runner = module.Runner(processes=max(1, int(gpus)), gpus=gpus)
        module.leave_on_sigterm(self.runner)

    def run(self, order: WorkOrder, worker: str) -> Iterator[Event]:
        """Run the task in a thread; yield each event when it happens."""
        events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()

        def run() -> None:
            try:
                work(self.runner, order, worker, events.put)
            except BaseException as error:
                # A stage's errors are events; this one is the runner's own. Raised below.
                events.put(error)

        threading.Thread(target=run, name=order.task.id, daemon=True).start()
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                # As an Exception: what ends a process would do so without a word.
                raise RuntimeError(f"the worker failed: {event!r}") from event
            yield event
            if isinstance(event, TaskEnded | TaskHandedBack):
                return
