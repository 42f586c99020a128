"""An executor in one file: processes of concurrent.futures, one a worker.

Found through RESURGE_PLUGINS, as a user's own for Slurm or Kubernetes would be. Each worker is a
pool of one process: a pool of several is of no more use once one of them has died.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from orchestrator.core.registry import find
from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker, Workers
from orchestrator.executors.pools import pool_of
from orchestrator.executors.worker import WorkerProcess
from orchestrator.messages import Event, LossCause, TaskEnded, TaskOver, WorkerLost, WorkOrder


class _Seat:
    """A worker's place: its process, its task, and what is heard of that next."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A process that is forked would have this one's threads' locks; `find` loads this file.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, find, ("executor", Processes.name))
        self._pid = self._pool.submit(os.getpid)
        self.holds: str | None = None
        self.order: WorkOrder | None = None
        self.news: Future[Event] = Future()
        self.hung = ""

    def ask(self, call: Callable[..., Event], *values: Any) -> None:
        """Have the process called; `news` is its answer."""
        try:
            self.news = self._pool.submit(call, *values)
        except BrokenProcessPool as error:  # it died while it had nothing to do
            self.news = Future()
            self.news.set_exception(error)

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        for process in multiprocessing.active_children():
            if self._pid.exception() is None and process.pid == self._pid.result():
                process.kill()

    def close(self) -> None:
        """The same, and wait for it."""
        self.kill()
        self._pool.shutdown(cancel_futures=True)


class Processes(Executor):
    """Processes on this machine."""

    name = "processes"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self._seats: dict[str, _Seat] = {}

    def start(self) -> None:
        """As many as the settings say; they load torch with their first task."""
        pool = pool_of(self.settings, {}, is_local=True)
        names = [f"worker-{number}" for number in range(pool.max)]
        self._threads, self._seats = pool.threads, {name: _Seat(name) for name in names}

    def workers(self) -> Workers:
        """Those without a task are free."""
        free = [FreeWorker(s.name, s.holds) for s in self._seats.values() if s.order is None]
        return Workers(free, most=len(self._seats))

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Begin the task in that worker's process."""
        self._seats[worker].order = order
        self._seats[worker].ask(_first, order, worker, self._threads)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """What the processes have answered."""
        asked = {seat.news: seat for seat in self._seats.values() if seat.order is not None}
        if not asked:
            time.sleep(timeout_s)
        over, _ = futures.wait(asked, timeout_s, futures.FIRST_COMPLETED)
        return [self._heard(asked[news]) for news in over]

    def abandon(self, task_id: str, reason: str) -> None:
        """Kill the process that has the task."""
        for seat in self._seats.values():
            if seat.order is not None and seat.order.task.id == task_id:
                seat.hung = reason
                seat.kill()

    def shutdown(self) -> None:
        """Kill them all."""
        while self._seats:
            self._seats.popitem()[1].close()

    def _heard(self, seat: _Seat) -> Event:
        assert seat.order is not None  # nothing is asked of a worker without a task
        try:
            event = seat.news.result()
        except Exception as error:  # its process died, or the runner raised something of its own
            reason = seat.hung or f"{type(error).__name__}: {error}"
            how: LossCause = "hang" if seat.hung else "death"
            event = WorkerLost(seat.order.task.id, seat.name, reason, how)
        if isinstance(event, TaskEnded):
            seat.holds, seat.order = event.holds, None
        elif isinstance(event, TaskOver):  # it is lost, or was asked to leave
            seat.close()
            self._seats[seat.name] = _Seat(seat.name)
        else:
            seat.ask(_next)
        return event


# In the worker's process

_worker: WorkerProcess | None = None
_events: Iterator[Event] = iter(())


def _first(order: WorkOrder, worker: str, threads: int) -> Event:
    global _worker, _events
    _worker = _worker or WorkerProcess(threads)
    _events = _worker.run(order, worker)
    return _next()


def _next() -> Event:
    return next(_events)
