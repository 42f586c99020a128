"""Ray: workers are actors that keep their model warm."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.core.errors import ResurgeError, Stopped
from orchestrator.executors.base import (
    Executor,
    ExecutorSettings,
    FreeWorker,
    WorkerKind,
    Workers,
)
from orchestrator.executors.joining import address_to_join, check
from orchestrator.executors.own_ray import OwnRay
from orchestrator.executors.pools import (
    Machine,
    Pool,
    lacking,
    pool_of,
    score_pool,
    whole_gpu_pool,
)
from orchestrator.executors.worker import WorkerProcess
from orchestrator.messages import Event, LossCause, TaskEnded, TaskHandedBack, WorkerLost, WorkOrder

FORWARDED = ("RESURGE_PLUGINS", "MLFLOW_DISABLE_TELEMETRY", "PYTHONSAFEPATH")
"""Environment variables that workers on other machines must see as well."""

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in a submitted job."""

IDLE_S = 30.0
"""An elastic worker without a task goes after this long: models take seconds to load."""
MAX_FALSE_STARTS = 3
"""So many workers in a row that could not start, and it is no accident."""
MAX_DEATHS = 3
"""So often a Ray of our own is started again."""
DEATH_IS_SEEN_S = 3.0
"""When a worker's end may be that of all of Ray, that is known after so long."""
LOOK_EVERY_S = 5.0
"""How often a cluster is asked what it has."""


class RayWorker(WorkerProcess):
    """What runs in an actor."""

    def where(self) -> str:
        """The id of the machine; also the sign that the actor is up."""
        ray = importlib.import_module("ray")
        return str(ray.get_runtime_context().get_node_id())


@dataclass
class _Seat:
    """A worker's place: the actor that sits in it, and what it is doing.

    `starting` is a reference that is ready when the actor is up; None from then on.
    """

    name: str
    has: WorkerKind
    actor: Any
    starting: Any
    idle_since_s: float
    node: str | None = None
    holds: str | None = None
    order: WorkOrder | None = None
    stream: Any = None

    @property
    def is_free(self) -> bool:
        return self.order is None and self.starting is None


class RayExecutor(Executor):
    """Ray actors, on this machine or on the cluster that RAY_ADDRESS names."""

    name = "ray"

    def __init__(
        self, settings: ExecutorSettings, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(settings)
        self.seats: dict[str, _Seat] = {}
        self.ray: Any = None
        self._clock_s = clock_s
        self._pools: dict[WorkerKind, Pool] = {}
        self._numbers = itertools.count()
        self._told: list[Event] = []
        self._false_starts = 0
        self._deaths = 0
        self._lack, self._looked_s = "", -math.inf
        self._address = address_to_join()
        self._own = OwnRay(self._cpus()) if self._address is None else None

    @property
    def _is_local(self) -> bool:
        return self._own is not None

    def start(self) -> None:
        """Join the cluster, or start Ray here, and bring the workers up that are always there.

        Raises:
            ResurgeError: that cannot be done, or this machine lacks what each worker is to have.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's own 15 lets any other process on a busy machine starve the workers.
        os.environ.setdefault("RAY_worker_niceness", "0")
        if self._address is not None and IN_A_JOB not in os.environ:
            check(self._address)
        self._connect()
        model = pool_of(self.settings, self.ray.cluster_resources(), self._is_local)
        self._pools = {WorkerKind(): model}
        if 0 < model.gpus < 1:  # what does not fit into the share gets the whole
            self._pools[WorkerKind(whole_gpu=True)] = whole_gpu_pool(model)
        if self.settings.score_workers is not None:
            score = score_pool(self.settings.score_workers, self._is_local)
            self._pools[WorkerKind("score")] = score
        if self._is_local and (lack := lacking(model, self._machines())) is not None:
            need, have = lack
            raise ResurgeError(
                f"each worker is to have {need}, and this machine has {have}: change `gpus`, "
                "`gpu_type` or `threads` of the sweep's `resources`, or run where that is "
                "(docs/cluster.md)"
            )
        for need_of, pool in self._pools.items():
            for _ in range(pool.min):
                self._seat(need_of)

    def _connect(self) -> None:
        """Be a driver of the cluster, or of a Ray that is started here."""
        address = self._own.start() if self._own is not None else self._address
        self.ray = importlib.import_module("ray")
        job_config: Any = None
        env_vars: dict[str, str] = {}
        if IN_A_JOB not in os.environ:  # a submitted job's workers have its environment already
            # Ray's word for: workers need not search this process's folder for modules.
            job_config = importlib.import_module("ray.job_config").JobConfig(_client_job=True)
            if not self._is_local:  # here they inherit it
                env_vars = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        with _own_signals(), _on_loopback(self._is_local):
            try:
                self.ray.init(
                    address=address,
                    job_config=job_config,
                    runtime_env={"env_vars": env_vars} if env_vars else {},
                    log_to_driver=False,
                    logging_level="error",
                )
            except Exception as error:  # of Ray's there are many kinds, without a common one
                raise ResurgeError(
                    f"Ray cannot be joined at {address}: {_reason(error)}"
                ) from error

    def workers(self) -> Workers:
        """Those that are up and have no task are free. The room is that of the machines that there
        are now; on a machine of one's own it does not matter.
        """
        pool = self._pools[WorkerKind()]
        room = math.inf
        if not self._is_local:
            resources = self.ray.cluster_resources()
            name, each = ("GPU", pool.gpus) if pool.gpus else ("CPU", pool.threads)
            room = int(resources.get(name, 0) / each)
        free = [FreeWorker(s.name, s.holds, s.has) for s in self.seats.values() if s.is_free]
        return Workers(free, max(1, pool.max), room, shares_gpu=0 < pool.gpus < 1)

    def adapt(self, wanted: Mapping[WorkerKind, int], may_have: float) -> None:
        """Bring workers up while tasks wait for them; let idle ones go."""
        self._start_again_if_gone()
        for need, pool in self._pools.items():
            limit = may_have if need.pool == "model" else math.inf
            mine = [seat for seat in self.seats.values() if seat.has == need]
            is_over = sum(seat.starting is None for seat in mine) > limit
            if math.isfinite(limit) and not is_over:
                free = self.ray.available_resources()
                if free.get("GPU", 0) < pool.gpus or free.get("CPU", 0) < pool.threads:
                    limit += 1  # waits for a machine: all that an autoscaler sees is what waits
            target = int(max(pool.min, min(wanted.get(need, 0), pool.max, limit)))
            for _ in range(target - len(mine)):
                self._seat(need)
            # Those that are not up yet go first: what they ask for, the cluster should not bring.
            waiting = [seat for seat in mine if seat.starting is not None]
            now_s = self._clock_s()
            idle = [s for s in mine if s.is_free and (is_over or now_s - s.idle_since_s > IDLE_S)]
            for seat in (*waiting, *idle)[: max(0, len(mine) - target)]:
                self.ray.kill(seat.actor)
                del self.seats[seat.name]

    def submit(self, order: WorkOrder, worker: str) -> None:
        """Start the task on that worker's actor."""
        seat = self.seats[worker]
        seat.order = order
        seat.stream = seat.actor.run.options(num_returns="streaming").remote(order, worker)

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """Events of every actor that has some.

        Raises:
            ResurgeError: workers cannot start, or Ray itself dies again and again.
        """
        self._start_again_if_gone()
        told, self._told = self._told, []
        streams = {seat.stream: seat for seat in self.seats.values() if seat.order is not None}
        starting = {s.starting: s for s in self.seats.values() if s.starting is not None}
        awaited = [*streams, *starting]
        if told or not awaited:
            if not told:
                time.sleep(min(timeout_s, 0.2))  # nothing can happen but what others do
            return told
        ready, _ = self.ray.wait(awaited, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self.ray.wait(awaited, num_returns=len(awaited), timeout=0)
        for reference in starting.keys() & set(ready):
            seat = starting[reference]
            try:
                seat.node = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                if self._own is not None and self._own.dies_within(DEATH_IS_SEEN_S):
                    break
                self._false_starts += 1
                if self._is_local or self._false_starts >= MAX_FALSE_STARTS:
                    raise ResurgeError(f"{seat.name} cannot start: {_reason(error)}") from error
                self._renew(seat)
            else:
                self._false_starts = 0
                seat.starting, seat.idle_since_s = None, self._clock_s()
        return [e for stream in streams if stream in ready for e in self._drain(streams[stream])]

    def abandon(self, task_id: str, reason: str) -> None:
        """Kill the worker that has the task."""
        for seat in self.seats.values():
            if seat.order is not None and seat.order.task.id == task_id:
                self._told.append(self._replace(seat, reason, "hang"))

    def lacks(self) -> str:
        """What workers wait for that no machine of the cluster has, though one may come."""
        now_s = self._clock_s()
        if self._is_local or now_s - self._looked_s < LOOK_EVERY_S:
            return self._lack
        self._looked_s = now_s
        missing = {seat.has for seat in self.seats.values() if seat.starting is not None}
        missing -= {seat.has for seat in self.seats.values() if seat.starting is None}
        machines = self._machines() if missing else []
        lacks = [lack for kind in missing if (lack := lacking(self._pools[kind], machines))]
        said = (f"waiting for {need}; this cluster has {have}" for need, have in lacks)
        self._lack = "; ".join(dict.fromkeys(said))
        return self._lack

    def shutdown(self) -> None:
        """Kill the actors and leave Ray."""
        if self.ray is not None:
            if self._own is None or not self._own.is_gone:
                for seat in self.seats.values():
                    self.ray.kill(seat.actor)
            self.ray.shutdown()
            self.ray = None
        self.seats.clear()
        if self._own is not None:
            self._own.end()

    def _machines(self) -> list[Machine]:
        nodes = (node for node in self.ray.nodes() if node["Alive"])
        return [Machine(node["Resources"], node.get("Labels") or {}) for node in nodes]

    def _start_again_if_gone(self) -> None:
        """A Ray of our own that has died took all workers with it; they get new ones."""
        if self._own is None or not self._own.is_gone:
            return
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise ResurgeError(
                f"Ray on this machine has died {self._deaths} times, which is often for want of "
                "memory. What is finished is kept; the same command goes on from here"
            )
        busy = [seat for seat in self.seats.values() if seat.order is not None]
        for seat in busy:
            assert seat.order is not None
            reason = "Ray on this machine has died and is started again"
            self._told.append(WorkerLost(seat.order.task.id, seat.name, reason, "node"))
        self.ray.shutdown()
        self._own.end()
        self._connect()
        for seat in self.seats.values():
            self._take_seat(seat)

    def _drain(self, seat: _Seat) -> Iterator[Event]:
        """All events of one stream that have already arrived."""
        while seat.order is not None:
            ready, _ = self.ray.wait([seat.stream], timeout=0)
            if not ready:
                return
            try:
                event: Event = self.ray.get(next(seat.stream))
            except (self.ray.exceptions.RayError, StopIteration) as error:
                yield self._replace(seat, _reason(error), self._how(seat, error))
                return
            if isinstance(event, TaskEnded):
                seat.order, seat.stream, seat.holds = None, None, event.holds
                seat.idle_since_s = self._clock_s()
            elif isinstance(event, TaskHandedBack):
                self._renew(seat)
            yield event

    def _how(self, seat: _Seat, error: Exception) -> LossCause:
        """How the worker died: its machine with it, killed for memory, or on its own."""
        text = str(error)
        if isinstance(error, self.ray.exceptions.OutOfMemoryError) or "low on memory" in text:
            return "oom"
        if self._own is not None:  # a Ray that dies is not asked
            return "node" if self._own.dies_within(DEATH_IS_SEEN_S) else "death"
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        return "death" if seat.node is None or seat.node in alive else "node"

    def _replace(self, seat: _Seat, reason: str, how: LossCause) -> WorkerLost:
        """Put a new actor into the seat of one that died."""
        assert seat.order is not None  # only a busy worker's stream can break
        lost = WorkerLost(seat.order.task.id, seat.name, reason, how)
        self._renew(seat)
        return lost

    def _renew(self, seat: _Seat) -> None:
        self.ray.kill(seat.actor)
        self._take_seat(seat)

    def _take_seat(self, seat: _Seat) -> None:
        seat.actor, seat.starting = self._actor(self._pools[seat.has])
        seat.node = seat.holds = seat.order = seat.stream = None

    def _seat(self, need: WorkerKind) -> None:
        name = f"worker-{next(self._numbers)}"
        actor, starting = self._actor(self._pools[need])
        self.seats[name] = _Seat(name, need, actor, starting, self._clock_s())

    def _actor(self, pool: Pool) -> tuple[Any, Any]:
        """A new actor, and a reference that is ready when it is up."""
        options: dict[str, Any] = {
            "num_cpus": pool.threads,
            "num_gpus": pool.gpus,
            "max_restarts": 0,
            **pool.labels(),
        }
        actor = self.ray.remote(RayWorker).options(**options).remote(pool.threads, pool.gpus)
        return actor, actor.where.remote()

    def _cpus(self) -> int:
        """Of a Ray of our own: more workers than cores are the user's choice."""
        pool = pool_of(self.settings, {}, is_local=True)
        cpus = max(os.cpu_count() or 1, pool.max * pool.threads)
        if self.settings.score_workers is not None:
            score = score_pool(self.settings.score_workers, is_local=True)
            cpus += score.max * score.threads
        return cpus


@contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, Ray takes SIGTERM for itself and makes a SystemExit of it; here it keeps the meaning
    that it has for the caller.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise Stopped from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _on_loopback(is_local: bool) -> Iterator[None]:
    """Inside, Ray goes by what OwnRay has put into the environment: 127.0.0.1 is an address, and
    there is a token. It reads that when it is imported, which may have been long ago, and would
    wait for an answer from the address that others see.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    if is_local:
        compiled = importlib.import_module("ray._raylet")
        compiled.Config.initialize("")
        compiled.AuthenticationTokenLoader.instance().reset_cache()
        constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def _reason(error: Exception) -> str:
    """One line of Ray's many: the last one of a worker's traceback, if it has one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith('File "') for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
