"""What a sweep's head does with its workers, on the cluster that RAY_ADDRESS names.

    python -m tests.integration.elastic_driver SCENE

A process of its own for each scene: Ray reads a cluster's token once in a process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import ray

from orchestrator.executors.base import ExecutorSettings, WorkerKind
from orchestrator.executors.pools import pool_of
from orchestrator.executors.ray import IDLE_S, LOOK_EVERY_S, RayExecutor
from orchestrator.sweep.resources import Elastic

GPUS = 2
TIMEOUT_S = 120.0


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Someone:
    """An actor of somebody else's."""


def until(is_true: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < end_s, f"waited {TIMEOUT_S:g} s for {what}"
        time.sleep(0.1)


def free() -> float:
    return float(ray.available_resources().get("GPU", 0))


def up(executor: RayExecutor) -> int:
    executor.wait(0.1)
    return len(executor.workers().free)


def waiting(executor: RayExecutor) -> int:
    return len(executor.seats) - up(executor)


def workers_come_while_tasks_wait_and_go_when_idle(executor: RayExecutor, clock: Clock) -> None:
    assert executor.workers().room == GPUS
    assert not executor.seats, "nobody has asked for one"
    executor.adapt({WorkerKind(): 5}, float("inf"))
    assert len(executor.seats) == executor.workers().most == 3, "as many as `max`"
    until(lambda: up(executor) == GPUS, "two workers")
    executor.adapt({WorkerKind(): GPUS}, float("inf"))
    assert (up(executor), waiting(executor)) == (2, 0), "what waits is taken back"
    executor.adapt({}, float("inf"))
    assert up(executor) == 2, "more may come"
    clock.s += IDLE_S + 1
    executor.adapt({}, float("inf"))
    assert not executor.seats
    until(lambda: free() == GPUS, "the GPUs to be free")


def a_share_is_kept_and_one_more_waits_for_a_machine(executor: RayExecutor, clock: Clock) -> None:
    executor.adapt({WorkerKind(): 5}, 1)
    until(lambda: up(executor) == 1 and free() == 1, "a worker")
    executor.adapt({WorkerKind(): 5}, 1)
    assert len(executor.seats) == 1, "there is room, and it is another's"
    other = ray.remote(Someone).options(num_gpus=1, num_cpus=0).remote()
    until(lambda: free() == 0, "the other to have the other GPU")
    executor.adapt({WorkerKind(): 5}, 1)
    assert (up(executor), waiting(executor)) == (1, 1), "an autoscaler sees what waits"
    ray.kill(other)
    until(lambda: up(executor) == 2, "what waited to come up")
    executor.adapt({WorkerKind(): 5}, 1)
    assert up(executor) == 1, "it was one too many"


def what_is_over_the_share_is_given_back(executor: RayExecutor, clock: Clock) -> None:
    executor.adapt({WorkerKind(): 5}, float("inf"))
    until(lambda: up(executor) == 2, "two workers")
    executor.adapt({WorkerKind(): 5}, 1)
    assert len(executor.seats) == 1, "at once, as both are idle"
    until(lambda: free() == 1, "its GPU to be free")


def what_no_machine_has_is_said(executor: RayExecutor, clock: Clock) -> None:
    assert executor.lacks() == "", "nobody wants anything"
    for gpus, types, words in (
        (4, (), "waiting for 4 GPUs; this cluster has 2"),
        (1, ("H100", "A100"), "waiting for a GPU of type H100 or A100; this cluster has no GPU"),
    ):
        asks = ExecutorSettings(workers=Elastic(max=1, gpus=gpus, gpu_type=types, threads=1))
        executor._pools = {WorkerKind(): pool_of(asks, {}, is_local=False)}
        executor.adapt({WorkerKind(): 1}, float("inf"))
        clock.s += LOOK_EVERY_S
        assert executor.lacks().startswith(words), executor.lacks()
        executor.adapt({}, float("inf"))


SCENES = {
    scene.__name__: scene
    for scene in (
        workers_come_while_tasks_wait_and_go_when_idle,
        a_share_is_kept_and_one_more_waits_for_a_machine,
        what_is_over_the_share_is_given_back,
        what_no_machine_has_is_said,
    )
}


def main() -> None:
    """The command."""
    clock = Clock()
    settings = ExecutorSettings(workers=Elastic(max=3, gpus=1, threads=1))
    with RayExecutor(settings, clock) as executor:
        until(lambda: free() == GPUS, "the GPUs of the scene before to be free")
        SCENES[sys.argv[1]](executor, clock)


if __name__ == "__main__":
    main()
