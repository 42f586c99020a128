"""Pools: how many workers of a kind there are, and what each asks a cluster for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.sweep.resources import Elastic, ExecutorSettings

ACCELERATOR = "ray.io/accelerator-type"
"""The label that Ray gives a node by its GPU."""


@dataclass(frozen=True)
class Pool:
    """From `min` to `max` workers, each with `gpus` GPUs and `threads` CPU threads.

    `gpu_types` are the types that will do, the preferred one first; empty: any.
    """

    min: int
    max: int
    gpus: float
    threads: int
    gpu_types: tuple[str, ...] = ()

    def labels(self) -> dict[str, Any]:
        """Ray's options that ask for a node of the preferred GPU type, else of the next."""
        if not self.gpu_types:
            return {}
        first, *others = ({ACCELERATOR: name} for name in self.gpu_types)
        found: dict[str, Any] = {"label_selector": first}
        if others:
            found["fallback_strategy"] = [{"label_selector": other} for other in others]
        return found


def pool_of(settings: ExecutorSettings, resources: Mapping[str, float], is_local: bool) -> Pool:
    """The workers that hold models.

    Args:
        settings: the sweep's.
        resources: what the cluster has now: "CPU", "GPU".
        is_local: whether it is this sweep's own. A fixed number of workers is there from the start
            then; on a cluster that others use as well they come and go.
    """
    given = settings.workers
    elastic = given if isinstance(given, Elastic) else None
    gpus_setting = elastic.gpus if elastic and elastic.gpus != "auto" else settings.gpus
    has_gpu = resources.get("GPU", 0) >= 1
    gpus = float(gpus_setting) if gpus_setting != "auto" else (1.0 if has_gpu else 0.0)
    cpus = int(resources.get("CPU", os.cpu_count() or 1))
    if isinstance(given, Elastic):
        low, high = given.min, given.max
    else:
        found = max(1, int(resources.get("GPU", 0) / gpus) if gpus else min(2, cpus))
        high = found if given == "auto" else int(given)
        low = high if is_local else 0
    threads_setting = elastic.threads if elastic and elastic.threads != "auto" else settings.threads
    if threads_setting != "auto":
        threads = int(threads_setting)
    else:
        wanted = high if isinstance(given, int) else 2
        threads = 1 if gpus else max(1, cpus // wanted)
    return Pool(low, high, gpus, threads, elastic.gpu_type if elastic else ())


@dataclass(frozen=True)
class Machine:
    """What a machine of a cluster has: resources ("CPU", "GPU") and labels, as Ray tells them."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def has(self, name: str) -> float:
        """How much of a resource."""
        return self.resources.get(name, 0.0)


def lacking(pool: Pool, machines: Sequence[Machine]) -> tuple[str, str] | None:
    """What a worker needs and what there is instead; None if some machine could hold one."""
    labelled = [m for m in machines if not pool.gpu_types or _type(m) in pool.gpu_types]
    if pool.gpu_types and not labelled:
        types = ", ".join(sorted({_type(machine) for machine in machines} - {""}))
        return f"a GPU of type {' or '.join(pool.gpu_types)}", types or "no GPU with a type"
    gpus, cpus = (max((m.has(name) for m in labelled), default=0) for name in ("GPU", "CPU"))
    if gpus < pool.gpus:
        return _amount(pool.gpus, "GPU"), _most(gpus, pool.gpus, labelled, "GPU")
    if cpus < pool.threads:
        return _amount(pool.threads, "CPU"), _most(cpus, pool.threads, labelled, "CPU")
    if any(m.has("GPU") >= pool.gpus and m.has("CPU") >= pool.threads for m in labelled):
        return None
    both = f"{_amount(pool.gpus, 'GPU')} and {_amount(pool.threads, 'CPU')} on one machine"
    return both, f"no machine with as many of both ({gpus:g} and {cpus:g} at most)"


def _type(machine: Machine) -> str:
    return machine.labels.get(ACCELERATOR, "")


def _amount(count: float, name: str) -> str:
    return f"{count:g} {name}{'s' if count > 1 else ''}"


def _most(most: float, needed: float, machines: Sequence[Machine], name: str) -> str:
    """'0', or '1 on each machine' where together there would be enough."""
    total = sum(machine.has(name) for machine in machines)
    return f"{most:g}" if total < needed else f"at most {most:g} on a machine"


def whole_gpu_pool(model: Pool) -> Pool:
    """Workers for what does not fit beside another on a GPU."""
    return dataclasses.replace(model, min=0, gpus=1.0)


def score_pool(given: int | Elastic, is_local: bool) -> Pool:
    """Workers without a GPU that judge pictures."""
    if isinstance(given, Elastic):
        threads = 1 if given.threads == "auto" else int(given.threads)
        return Pool(given.min, given.max, 0.0, threads)
    return Pool(given if is_local else 0, given, 0.0, 1)
