"""Ray: workers are actors that keep their model warm. The only file that imports ray."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ResurgeError
from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker
from orchestrator.work import Event, TaskEnded, WorkerLost, WorkOrder

FORWARDED = ("RESURGE_PLUGINS", "MLFLOW_DISABLE_TELEMETRY")
"""Environment variables that workers on other machines must see as well."""

LOCAL = "local"
"""Ray's word for a cluster of its own on this machine."""


@dataclass
class _Seat:
    """A worker's place: the actor that sits in it, and what it is doing.

    `starting` is a reference that is ready when the actor is up; None from then on.
    """

    name: str
    actor: Any
    starting: Any
    holds: str | None = None
    order: WorkOrder | None = None
    stream: Any = None


class _Work:
    """The actor. Its events are streamed while the task runs."""

    def __init__(self, threads: int) -> None:
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        self.runner = importlib.import_module("workers.runner").Runner()

    def run(self, order: WorkOrder, worker: str) -> Iterator[Event]:
        """Run the task in a thread; yield each event when it happens."""
        events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()

        def work() -> None:
            try:
                self.runner.run(order, events.put)
                events.put(TaskEnded(order.task.id, worker, self.runner.holds))
            except Exception as error:
                # A stage's errors are events; this one is the runner's own. Raised below.
                events.put(error)

        threading.Thread(target=work, name=order.task.id, daemon=True).start()
        while True:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, TaskEnded):
                return


class RayExecutor(Executor):
    """Ray actors, on this machine or on the cluster that RAY_ADDRESS names."""

    name = "ray"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self.seats: dict[str, _Seat] = {}
        self.ray: Any = None

    def start(self) -> None:
        """Join the cluster, or start Ray here, and bring the workers up."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's own 15 lets any other process on a busy machine starve the workers.
        os.environ.setdefault("RAY_worker_niceness", "0")
        self.ray = importlib.import_module("ray")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        address = os.environ.get("RAY_ADDRESS", LOCAL)
        self.ray.init(
            address=address,
            **(self._local_options() if address == LOCAL else {}),
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {k: os.environ[k] for k in FORWARDED if k in os.environ}},
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in the caller's place
        for index in range(self._workers()):
            name = f"worker-{index}"
            self.seats[name] = _Seat(name, *self._actor())

    def capacity(self) -> int:
        """The workers that there are to be, those that are still starting too."""
        return len(self.seats)

    def free_workers(self) -> Sequence[FreeWorker]:
        """The workers that are up and have no task."""
        return [
            FreeWorker(seat.name, seat.holds)
            for seat in self.seats.values()
            if seat.order is None and seat.starting is None
        ]

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Start the task on that worker's actor."""
        seat = self.seats[worker]
        seat.order = order
        seat.stream = seat.actor.run.options(num_returns="streaming").remote(order, worker)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Events of every actor that has some.

        Raises:
            ResurgeError: a worker cannot start.
        """
        streams = {seat.stream: seat for seat in self.seats.values() if seat.order is not None}
        starting = {s.starting: s for s in self.seats.values() if s.starting is not None}
        awaited = [*streams, *starting]
        ready, _ = self.ray.wait(awaited, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self.ray.wait(awaited, num_returns=len(awaited), timeout=0)
        for reference in starting.keys() & set(ready):
            self._is_up(starting[reference])
        return [e for stream in streams if stream in ready for e in self._drain(streams[stream])]

    def shutdown(self) -> None:
        """Kill the actors and leave Ray."""
        if self.ray is None:
            return
        for seat in self.seats.values():
            self.ray.kill(seat.actor)
        self.seats.clear()
        self.ray.shutdown()
        self.ray = None

    def _drain(self, seat: _Seat) -> Iterator[Event]:
        """All events of one stream that have already arrived."""
        while seat.order is not None:
            ready, _ = self.ray.wait([seat.stream], timeout=0)
            if not ready:
                return
            yield self._next(seat)

    def _next(self, seat: _Seat) -> Event:
        assert seat.order is not None  # the caller looked
        try:
            event: Event = self.ray.get(next(seat.stream))
        except (self.ray.exceptions.RayError, StopIteration) as error:
            return self._replace(seat, error)
        if isinstance(event, TaskEnded):
            seat.order, seat.stream, seat.holds = None, None, event.holds
        return event

    def _replace(self, seat: _Seat, error: Exception) -> WorkerLost:
        """Put a new actor into the seat of one that died."""
        assert seat.order is not None  # only a busy worker's stream can break
        lost = WorkerLost(seat.order.task.id, seat.name, _reason(error))
        self.ray.kill(seat.actor)
        seat.actor, seat.starting = self._actor()
        seat.holds = seat.order = seat.stream = None
        return lost

    def _actor(self) -> tuple[Any, Any]:
        """A new actor, and a reference that is ready when it is up."""
        options = {"num_cpus": self._threads(), "num_gpus": self._gpus(), "max_restarts": 0}
        actor = self.ray.remote(_Work).options(**options).remote(self._threads())
        return actor, actor.__ray_ready__.remote()

    def _is_up(self, seat: _Seat) -> None:
        try:
            self.ray.get(seat.starting)
        except self.ray.exceptions.RayError as error:
            raise ResurgeError(f"{seat.name} cannot start: {_reason(error)}") from error
        seat.starting = None

    def _local_options(self) -> dict[str, Any]:
        """More workers than cores are the user's choice; a dashboard would outlive its use."""
        threads = 1 if self.settings.threads == "auto" else int(self.settings.threads)
        wanted = 1 if self.settings.workers == "auto" else int(self.settings.workers)
        cpus = max(os.cpu_count() or 1, wanted * threads)
        return {"include_dashboard": False, "num_cpus": cpus}

    def _workers(self) -> int:
        if self.settings.workers != "auto":
            return int(self.settings.workers)
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0) / (self._gpus() or 1))
        return gpus or max(1, min(2, int(resources.get("CPU", 1))))

    def _gpus(self) -> float:
        if self.settings.gpus != "auto":
            return float(self.settings.gpus)
        return 1.0 if self.ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def _threads(self) -> int:
        if self.settings.threads != "auto":
            return int(self.settings.threads)
        if self._gpus():
            return 1
        cpus = int(self.ray.cluster_resources().get("CPU", 1))
        wanted = 2 if self.settings.workers == "auto" else int(self.settings.workers)
        return max(1, cpus // wanted)


def _reason(error: Exception) -> str:
    """One line of Ray's many."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")
