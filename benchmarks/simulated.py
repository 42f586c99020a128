"""Schedules of a large sweep on 1 to 4,096 GPUs, beside the least that any schedule takes.

The workers are simulated on a virtual clock; the head is the real one. No schedule ends before the
longest chain of tasks does, nor before all work divided by the GPUs. How many stages a second of
its CPU the head handles says how many GPUs it can keep busy.

    python -m benchmarks.simulated [TRIALS]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.core.stage import Stage
from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.simulated import Simulated
from orchestrator.messages import Task
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

GPUS = (1, 8, 64, 512, 4_096)
TRIALS = 100_000
STEPS = 4
METHODS = ("uce", "esd", "salun", "spm", "none")
TARGET = 1.1
SWEEP = """
name: simulated
base: shapes
concept: star
edits:
  - unlearn: [{methods}]
  - finetune:
      dataset: [related, unrelated]
      learning_rate: [{rates}]
      steps: [50, 100, 200, 400]
evaluate: {{metrics: [concept_accuracy], images_per_prompt: 1, controls: false}}
seeds: 1
"""
UNLEARN_S, PER_STEP_S, SAMPLE_S, SCORE_S = 600.0, 0.5, 120.0, 2.0
"""About Stable Diffusion's on one GPU; only their proportions matter here."""


@dataclass(frozen=True)
class Schedule:
    """Of so many GPUs."""

    gpus: int
    makespan_s: float
    least_s: float
    stages: int
    cpu_s: float

    @property
    def ratio(self) -> float:
        """Of the makespan to the least possible."""
        return self.makespan_s / self.least_s


def seconds_of(stage: Stage) -> float:
    """How long a stage is pretended to take; a trajectory's step counts go on from one another."""
    if stage.kind == "unlearn":
        return UNLEARN_S
    if stage.kind == "finetune":
        return PER_STEP_S * stage.steps / 2  # 50, 100, 200, 400: each trains half of its own count
    return SAMPLE_S if stage.kind == "sample" else SCORE_S


def least_s(tasks: Sequence[Task], gpus: int) -> float:
    """The longest chain of stages, or all work over all GPUs, whichever is more."""
    makers = {stage.key: task for task in tasks for stage in task.stages}
    begins: dict[str, float] = {}

    def recorded(key: str) -> float:
        """At the earliest."""
        task = makers[key]
        at = begin(task)
        for stage in task.stages:
            at += seconds_of(stage)
            if stage.key == key:
                break
        return at

    def begin(task: Task) -> float:
        if task.id not in begins:
            read = (stage.key for stage in task.waits_for if stage.key in makers)
            begins[task.id] = max(map(recorded, read), default=0.0)
        return begins[task.id]

    work = [sum(map(seconds_of, task.stages)) for task in tasks]
    chain = max(begin(task) + spent for task, spent in zip(tasks, work, strict=True))
    return max(chain, sum(work) / gpus)


def schedule(tasks: Sequence[Task], gpus: int, folder: Path) -> Schedule:
    """Run the tasks on so many pretended GPUs."""
    executor = Simulated(ExecutorSettings(workers=gpus), seconds_of)
    executor.start()
    begin = time.process_time()
    head = Scheduler(tasks, (), executor, Store(folder), folder, clock_s=lambda: executor.now_s)
    outcome = head.run()
    cpu_s = time.process_time() - begin
    if not outcome.ok:
        raise SystemExit(f"stages failed: {outcome.failed}")
    return Schedule(gpus, executor.now_s, least_s(tasks, gpus), len(outcome.ran), cpu_s)


def main(trials: int) -> None:
    """Measure every number of GPUs and print a table."""
    console = Console()
    each = len(METHODS) * 2 * STEPS
    rates = ", ".join(f"{1e-6 * (1 + i):.9f}" for i in range(max(1, trials // each)))
    begin = time.process_time()
    plan = make_plan(parse(SWEEP.format(methods=", ".join(METHODS), rates=rates)))
    tasks = make_tasks(plan, (), ())
    console.print(
        f"{len(plan.trials):,} trials, {len(plan.stages):,} stages, {len(tasks):,} tasks; planned "
        f"in {time.process_time() - begin:.1f} s of CPU"
    )
    table = Table("GPUs", "makespan h", "least h", "ratio", "", "stages a CPU second", box=None)
    for gpus in GPUS:
        with tempfile.TemporaryDirectory() as folder:
            found = schedule(tasks, gpus, Path(folder))
        rate = found.stages / found.cpu_s
        verdict = "met" if found.ratio <= TARGET else "not met"
        numbers = (f"{found.makespan_s / 3600:,.1f}", f"{found.least_s / 3600:,.1f}")
        table.add_row(f"{gpus:,}", *numbers, f"{found.ratio:.3f}", verdict, f"{rate:,.0f}")
        console.print(f"{gpus:,} GPUs: {found.ratio:.3f} times the least")
    console.print(table)
    mean_s = sum(sum(map(seconds_of, task.stages)) for task in tasks) / len(plan.stages)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(
        f"a stage takes {mean_s:.0f} s on average here, so that a head that handles {rate:,.0f} a "
        f"second keeps {rate * mean_s:,.0f} GPUs busy; memory of this process {peak_gib:.1f} GiB"
    )
    console.print(f"target: no more than {TARGET} times the least")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS)
