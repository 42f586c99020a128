"""What a sweep would take on so many workers: by what the like of its stages took, and a simulation
of the schedule.
"""

from __future__ import annotations

import heapq
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.digest import Canonical, canonical_json
from orchestrator.core.errors import ResurgeError
from orchestrator.core.stage import Stage
from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.simulated import Simulated
from orchestrator.messages import Task
from orchestrator.plan.plan import Plan
from orchestrator.plan.tasks import make_tasks, unlearning_passes
from orchestrator.run.job import Job
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Record, Store

BACKWARD = 2
"""A backward pass counts as two forward ones."""


@dataclass(frozen=True)
class Way:
    """One way to run a sweep: seconds of all workers together, and until the last has ended."""

    worker_s: float
    makespan_s: float


@dataclass(frozen=True)
class Forecast:
    """What a sweep would take.

    `naive` is every trial alone, from the base to its scores; `by_hand` with the unlearned models
    and what they were made from kept and used again, as a careful script does; `shared` the plan;
    `left` what the store does not have of it. `path_s` is the longest chain of stages, below which
    no number of workers brings the makespan. `stored_bytes` are the files of `left`. `guessed` are
    the plug-ins that no record tells of: their seconds are from others' by UNet passes, or none.
    """

    device: str
    naive: Way
    by_hand: Way
    shared: Way
    left: Way
    path_s: float
    stored_bytes: float
    guessed: tuple[str, ...]


def forecast_job(job: Job, workers: int, device: str | None = None) -> Forecast:
    """What is left of a job, and the whole of it.

    Raises:
        ResurgeError: nothing is known of its stages' costs, or it is a search.
    """
    if job.sweep.search is not None:
        raise ResurgeError(
            f"sweep {job.sweep.name!r} has a `search` block: which trials it runs is not known "
            "beforehand; its budget (search.trials, search.gpu_hours) says what it may take"
        )
    return forecast(job.plan, job.store, job.sweep.keep, workers, device)


def forecast(
    plan: Plan, store: Store, keep: Collection[str], workers: int, device: str | None = None
) -> Forecast:
    """What a plan would take on `workers` workers of a kind that the store has records of.

    Args:
        keep: which weights stay, by the sweep's words.
        device: part of a device's name as records have it ("H100", "cpu"); None: the only one.

    Raises:
        ResurgeError: no stage of this base was run on such a device, or several kinds were.
    """
    costs = learn(store, plan.root.digest, device)
    every, left = make_tasks(plan, (), keep), make_tasks(plan, store.keys(), keep)
    seconds = dict(_in_tasks(every, costs)) | dict(_in_tasks(left, costs))
    naive, once, after = _trial_by_trial(plan, costs)
    by_hand = _spread(once, workers), _spread(after, workers)
    shared_s = sum(seconds[stage.key] for stage in plan.stages)
    left_s = sum(seconds[stage.key] for task in left for stage in task.stages)
    return Forecast(
        device=costs.device,
        naive=Way(sum(naive), _spread(naive, workers)),
        by_hand=Way(sum(once) + sum(after), sum(by_hand)),
        shared=Way(shared_s, simulated_s(every, (), workers, seconds)),
        left=Way(left_s, simulated_s(left, store.keys(), workers, seconds)),
        path_s=longest_path_s(every, seconds),
        stored_bytes=sum(costs.bytes_of(stage) for task in left for stage in task.stages),
        guessed=tuple(sorted(costs.guessed)),
    )


@dataclass
class Costs:
    """Seconds and bytes of stages, as records of one base on one device have them.

    `rates` are by kind and plug-in the median seconds: a UNet pass where there are any, else a
    stage. `each` says which.
    """

    device: str
    rates: Mapping[tuple[str, str], float]
    each: Mapping[tuple[str, str], bool]
    pass_s: float
    sizes: Mapping[tuple[str, str], float]
    guessed: set[str] = field(default_factory=set)

    def seconds_of(self, stage: Stage, trained: int = 0) -> float:
        """A stage's; of a fine-tune that goes on after `trained` steps."""
        if stage.kind == "base":
            return 0.0
        name = (stage.kind, stage.plugin)
        amount = amount_of(stage.kind, stage.plugin, stage.settings, trained)
        if name not in self.rates:
            self.guessed.add(" ".join(name))
            return amount * self.pass_s
        return self.rates[name] * (1 if self.each[name] else amount)

    def bytes_of(self, stage: Stage) -> float:
        """What it leaves in the store."""
        return self.sizes.get((stage.kind, stage.plugin), 0.0)


def amount_of(kind: str, plugin: str, settings: Mapping[str, Any], trained: int = 0) -> float:
    """UNet passes over one latent of a stage, a backward pass counted as two; 0 if it has none."""
    own = settings["settings"]
    if kind == "finetune":
        batch = own["batch_size"] * own["accumulation"]
        return float((own["steps"] - trained) * batch * (1 + BACKWARD))
    if kind == "unlearn":
        return float(unlearning_passes(plugin, settings))
    asked = settings.get("probes", settings.get("prompts"))
    if kind == "sample" or (kind == "prepare" and asked and "sampler_steps" in own):
        guided = 1 if own["guidance"] <= 1 else 2
        return float(len(asked or ()) * own["images_per_prompt"] * own["sampler_steps"] * guided)
    return 0.0


def learn(store: Store, root: str, device: str | None) -> Costs:
    """What the store's records of a base's stages say of costs.

    Raises:
        ResurgeError: there are none on such a device, or several kinds of devices.
    """
    known = {r.digest: r for key in sorted(store.keys()) if (r := store.record(key)) is not None}
    records = [r for r in known.values() if _base_of(r, known) == root]
    devices = Counter(str(record.provenance.get("device")) for record in records)
    if device is not None:
        devices = Counter({n: c for n, c in devices.items() if device.lower() in n.lower()})
    if not devices:
        where = f" on {device}" if device else ""
        raise ResurgeError(
            f"no stage of this base has run{where} yet, so nothing is known of what one takes: run "
            "a few trials first (resurge run … seeds=1), or name a device that has (--gpu)"
        )
    if len(devices) > 1:
        raise ResurgeError(
            f"stages of this base have run on {', '.join(sorted(devices))}: choose one with --gpu"
        )
    [chosen] = devices
    own = [r for r in records if str(r.provenance.get("device")) == chosen]
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for name, amount, seconds in _taken(own):
        taken[name].append((amount, seconds))
    each = {name: min(amount for amount, _ in some) == 0 for name, some in taken.items()}
    rates = {
        name: statistics.median(s if each[name] else s / amount for amount, s in some)
        for name, some in taken.items()
    }
    passes = [pair for name, some in taken.items() if not each[name] for pair in some]
    total = sum(amount for amount, _ in passes)
    sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in own:
        sizes[record.kind, record.plugin].append(sum(b.size_bytes for b in record.objects.values()))
    return Costs(
        device=chosen,
        rates=rates,
        each=each,
        pass_s=sum(seconds for _, seconds in passes) / total if total else 0.0,
        sizes={name: statistics.fmean(some) for name, some in sizes.items()},
    )


def _taken(records: Iterable[Record]) -> Iterator[tuple[tuple[str, str], float, float]]:
    """By kind and plug-in, passes and seconds: of a trajectory's step counts together, since each
    went on from the one before.
    """
    together: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "finetune":
            recipe = Canonical(record.identity).without_steps
            name = canonical_json([recipe, record.seed, record.parent, dict(record.inputs)])
            together[name].append(record)
        else:
            amount = amount_of(record.kind, record.plugin, record.settings)
            yield (record.kind, record.plugin), amount, record.seconds
    for some in together.values():
        last = max(some, key=lambda record: record.settings["settings"]["steps"])
        amount = amount_of("finetune", last.plugin, last.settings)
        yield ("finetune", last.plugin), amount, sum(record.seconds for record in some)


def _base_of(record: Record, known: Mapping[str, Record]) -> str | None:
    """The digest of the base that a record comes from, as far as it can be followed."""
    while record.parent is not None and record.parent in known:
        record = known[record.parent]
    return record.parent


def _in_tasks(tasks: Iterable[Task], costs: Costs) -> Iterator[tuple[str, float]]:
    """Each stage's seconds where a task's trainings go on from one step count to the next."""
    for task in tasks:
        trained: dict[str, int] = {}
        for stage in task.stages:
            before = trained.get(stage.trajectory, 0) if stage.trajectory else 0
            yield stage.key, costs.seconds_of(stage, before)
            if stage.trajectory:
                trained[stage.trajectory] = stage.steps


def _trial_by_trial(plan: Plan, costs: Costs) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each trial alone; of what a careful script does once; of the rest, by trial."""
    seconds = {stage: costs.seconds_of(stage) for t in plan.trials for stage in t.stages()}
    shared: dict[Stage, None] = {}
    for planned in plan.trials:
        for point in (planned.base, planned.unlearned):
            shared.update(dict.fromkeys(point.stages()))
        shared.update(dict.fromkeys(s for s in planned.stages() if s.kind == "prepare"))
    naive = [sum(seconds[stage] for stage in t.stages()) for t in plan.trials]
    rest = [sum(seconds[s] for s in t.stages() if s not in shared) for t in plan.trials]
    return naive, [seconds[stage] for stage in shared], rest


def _spread(jobs: Iterable[float], workers: int) -> float:
    """Until the last of these is done, the longest first on whoever is free."""
    busy_until = [0.0] * workers
    for seconds in sorted(jobs, reverse=True):
        heapq.heapreplace(busy_until, busy_until[0] + seconds)
    return max(busy_until)


def simulated_s(
    tasks: Sequence[Task], done: Collection[str], workers: int, seconds: Mapping[str, float]
) -> float:
    """The makespan of tasks under our scheduler, on a virtual clock."""
    executor = Simulated(ExecutorSettings(workers=workers), lambda stage: seconds[stage.key])
    with tempfile.TemporaryDirectory() as folder, executor:
        Scheduler(
            tasks, done, executor, Store(folder), Path(folder), clock_s=lambda: executor.now_s
        ).run()
        return executor.now_s


def longest_path_s(tasks: Sequence[Task], seconds: Mapping[str, float]) -> float:
    """Until the last stage, if there were a worker for every task."""
    ends: dict[str, float] = {}
    made = {stage.key for task in tasks for stage in task.stages}
    left = list(tasks)
    while left:
        later = []
        for task in left:
            awaited = [stage.key for stage in task.waits_for if stage.key in made]
            if not all(key in ends for key in awaited):
                later.append(task)
                continue
            at = max((ends[key] for key in awaited), default=0.0)
            for stage in task.stages:
                at += seconds[stage.key]
                ends[stage.key] = at
        left = later
    return max(ends.values(), default=0.0)
