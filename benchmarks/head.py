"""What the head's scheduler costs by the size of a sweep: CPU an event, on simulated workers.

Sizes run one after another in this process, each on an empty store; an event is what a worker tells
(a stage committed, a task ended). The workers are simulated on a virtual clock, so that all of the
CPU time is the head's.

    python -m benchmarks.head [TASKS …]
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.simulated import Simulated
from orchestrator.messages import Event
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

SIZES = (1_000, 10_000, 100_000)
WORKERS = 64
METHODS = 4
FLAT = 1.2
LIMIT_MS = 0.5
SWEEP = """
name: head
base: shapes
concept: star
edits:
  - unlearn: [uce, esd, salun, spm]
  - finetune:
      dataset: related
      learning_rate: [{rates}]
      steps: 50
evaluate: {{metrics: [concept_accuracy], images_per_prompt: 1, controls: false}}
seeds: 1
"""


@dataclass(frozen=True)
class Cost:
    """Of one size."""

    tasks: int
    events: int
    cpu_s: float

    @property
    def ms(self) -> float:
        """Milliseconds of CPU an event."""
        return 1e3 * self.cpu_s / self.events


def measure(size: int, folder: Path) -> Cost:
    """Schedule a sweep of about that many tasks to its end."""
    rates = ", ".join(f"{1e-6 * (1 + i):.9f}" for i in range(size // METHODS))
    plan = make_plan(parse(SWEEP.format(rates=rates)))
    tasks = make_tasks(plan, (), ())
    executor = Simulated(ExecutorSettings(workers=WORKERS), lambda stage: 1.0 + stage.steps)
    executor.start()
    events = 0

    def count(event: Event) -> None:
        nonlocal events
        events += 1

    gc.collect()
    begin = time.process_time()
    scheduler = Scheduler(
        tasks, (), executor, Store(folder), folder, count, clock_s=lambda: executor.now_s
    )
    outcome = scheduler.run()
    cpu_s = time.process_time() - begin
    if not outcome.ok:
        raise SystemExit(f"stages failed: {outcome.failed}")
    return Cost(len(tasks), events, cpu_s)


def main(sizes: Sequence[int]) -> None:
    """Measure every size and print a table."""
    console = Console()
    costs = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            costs.append(measure(size, Path(folder)))
            console.print(f"{costs[-1].tasks:,} tasks: {costs[-1].ms:.3f} ms an event")
    table = Table("tasks", "events", "CPU s", "ms an event", f"of {costs[0].tasks:,}'s", box=None)
    for cost in costs:
        share = cost.ms / costs[0].ms
        table.add_row(
            f"{cost.tasks:,}", f"{cost.events:,}", f"{cost.cpu_s:.2f}", f"{cost.ms:.3f}",
            f"{share:.2f}",
        )  # fmt: skip
    console.print(table)
    is_met = all(cost.ms <= min(LIMIT_MS, FLAT * costs[0].ms) for cost in costs)
    console.print(
        f"target: under {LIMIT_MS:g} ms, and no more than {FLAT:g} times the smallest's: "
        f"{'met' if is_met else 'not met'}"
    )


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or SIZES)
