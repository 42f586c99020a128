"""What sharing stages saves: one sweep through Resurge, and the same trials one by one.

Both sides run in this process, on the same warm model, one after the other; every trial of the
second side has an empty store of its own, as a script that loops over a grid would. Prints both.

    python -m benchmarks.sharing [SETTING=VALUE …]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.inline import Inline
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

SWEEP = """
name: sharing
base: shapes
concept: star
edits:
  - unlearn: [{esd: {iterations: 10}}, uce]
  - finetune:
      dataset: related
      learning_rate: [3.0e-4, 1.0e-3]
      steps: [10, 20, 30]
evaluate: {metrics: [concept_accuracy], images_per_prompt: 1}
"""


@dataclass(frozen=True)
class Cost:
    """What a side took."""

    stages: int
    steps: int
    seconds: float


def run(plan: Plan, executor: Inline, folder: Path) -> Cost:
    """Run a plan on an empty store."""
    begin = time.perf_counter()
    scheduler = Scheduler(make_tasks(plan, (), ()), (), executor, Store(folder), folder / "logs")
    outcome = scheduler.run()
    if not outcome.ok:
        raise SystemExit(f"stages failed: {outcome.failed}")
    return Cost(len(outcome.ran), plan.steps(), time.perf_counter() - begin)


def alone(plan: Plan, index: int) -> Plan:
    """The plan of one trial."""
    trial = plan.trials[index]
    return Plan(plan.name, plan.root, (trial,), trial.stages())


def main(overrides: Sequence[str]) -> None:
    """Measure both sides and print them."""
    console = Console()
    plan = make_plan(parse(SWEEP, None, overrides))
    with tempfile.TemporaryDirectory() as folder, Inline(ExecutorSettings()) as executor:
        warm = alone(plan, 0)
        run(warm, executor, Path(folder) / "warm-up")  # both sides find the model loaded
        shared = run(plan, executor, Path(folder) / "shared")
        singles = [
            run(alone(plan, index), executor, Path(folder) / str(index))
            for index in track(range(len(plan.trials)), "trial by trial", console=console)
        ]
    naive = Cost(
        *(sum(getattr(cost, name) for cost in singles) for name in ("stages", "steps", "seconds"))
    )
    table = Table("", "stages", "fine-tuning steps", "seconds")
    for name, cost in (("trial by trial", naive), ("resurge", shared)):
        table.add_row(name, str(cost.stages), str(cost.steps), f"{cost.seconds:.0f}")
    ratios = (naive.stages / shared.stages, naive.steps / shared.steps)
    table.add_row("ratio", *(f"{r:.1f}" for r in ratios), f"{naive.seconds / shared.seconds:.1f}")
    console.print(f"{len(plan.trials)} trials, controls included")
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
