"""What each stage of a sweep takes: seconds, peak memory, and seconds of an optimiser step.

The sweep runs in this process, a stage at a time. Memory is what torch had of a GPU at most, or,
without one, the process's own peak (Linux's, set back before each stage).

    python -m benchmarks.stages [SWEEP.yaml] [SETTING=VALUE …]
"""

from __future__ import annotations

import itertools
import re
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.sides import wait_for_device
from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.inline import Inline
from orchestrator.messages import Event, StageCommitted, StageFailed, StageStarted, WorkOrder
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse

GIB = 1 << 30
SWEEP = """
name: stages
base: shapes
concept: star
edits:
  - unlearn: [uce, {esd: {iterations: 12}}, {salun: {iterations: 12}}, {spm: {iterations: 12}}]
  - finetune: {dataset: related, adapter: [full, lora], steps: [20]}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 2, controls: false}
seeds: 1
"""


@dataclass
class Cost:
    """Of one stage of the model `of`, with its record's metrics; no `failure` if it was done."""

    of: str
    kind: str
    plugin: str
    settings: dict[str, Any]
    seconds: float = 0.0
    peak_bytes: int = 0
    steps_s: list[float] = field(default_factory=list)
    failure: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kind, plug-in, and what tells a fine-tuning from others."""
        told = self.settings.get("settings", {})
        more = [str(told[name]) for name in ("adapter", "precision") if name in told]
        return " ".join([self.kind, *({self.plugin} - {self.kind}), *more])

    @property
    def step_s(self) -> float | None:
        """The median step; None where nothing is trained."""
        return statistics.median(self.steps_s) if self.steps_s else None


class Watch:
    """A runner that notes what each of its stages takes."""

    def __init__(self, runner: Any, plan: Plan, told: Callable[[Cost], None]) -> None:
        self.runner, self.told = runner, told
        self.stages = {stage.key: stage for stage in plan.stages}
        self.costs: list[Cost] = []
        self._begin = 0.0
        self._ends: list[tuple[weakref.ref[torch.optim.Optimizer], list[float]]] = []

    @property
    def holds(self) -> str | None:
        """The digest of the model in memory."""
        held: str | None = self.runner.holds
        return held

    def run(self, order: WorkOrder, emit: Callable[[Event], None]) -> bool:
        """As the runner does, listening."""

        def hear(event: Event) -> None:
            if isinstance(event, StageStarted):
                self._ends.clear()
                forget_peak()
                self._begin = time.perf_counter()
            elif isinstance(event, StageCommitted | StageFailed):
                self._note(event)
            emit(event)

        handle = register_optimizer_step_post_hook(self._stepped)
        try:
            done: bool = self.runner.run(order, hear)
        finally:
            handle.remove()
        return done

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        wait_for_device()
        ends = next((ends for kept, ends in self._ends if kept() is optimizer), None)
        if ends is None:
            ends = []
            self._ends.append((weakref.ref(optimizer), ends))
        ends.append(time.perf_counter())

    def _note(self, event: StageCommitted | StageFailed) -> None:
        wait_for_device()
        stage = self.stages[event.key]
        model = stage.model
        of = f"{model.kind} {model.plugin} {model.key[:4]}"
        cost = Cost(of, stage.kind, stage.plugin, dict(stage.settings))
        cost.seconds, cost.peak_bytes = time.perf_counter() - self._begin, peak_bytes()
        # Of several optimisers, the one that the time goes to.
        every = [times for _, times in self._ends]
        ends = max(every, key=lambda times: times[-1] - times[0], default=[])
        cost.steps_s = [after - before for before, after in itertools.pairwise(ends)]
        if isinstance(event, StageFailed):
            cost.failure = event.failure.message
        else:
            cost.metrics = dict(event.record.metrics)
        self.costs.append(cost)
        self.told(cost)


def forget_peak() -> None:
    """Begin to look for a peak of memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory since then: of the GPU what torch's tensors took, else the process's own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def measure(sweep: Sweep, told: Callable[[Cost], None] = lambda cost: None) -> list[Cost]:
    """Run a sweep on an empty store; what every stage took, failed ones too, in their order."""
    plan = make_plan(sweep)
    with tempfile.TemporaryDirectory() as folder, Inline(ExecutorSettings()) as executor:
        watch = Watch(executor.runner, plan, told)
        executor.runner = watch
        tasks = make_tasks(plan, (), ())
        Scheduler(tasks, (), executor, Store(Path(folder)), Path(folder) / "logs").run()
    return watch.costs


def show(console: Console, costs: Sequence[Cost], title: str = "") -> None:
    """Print a table of them."""
    table = Table("stage", "seconds", "peak GiB", "ms a step", "", title=title, box=None)
    for cost in costs:
        step = "" if cost.step_s is None else f"{1e3 * cost.step_s:.0f}"
        peak = f"{cost.peak_bytes / GIB:.2f}"
        table.add_row(cost.name, f"{cost.seconds:.2f}", peak, step, cost.failure)
    console.print(table)


def main(arguments: Sequence[str]) -> None:
    """Measure a sweep and print a table."""
    file = next(iter(arguments), "")
    overrides = list(arguments[1:])
    if "=" in file:
        file, overrides = "", list(arguments)
    text = Path(file).read_text() if file else SWEEP
    console = Console()
    show(console, measure(parse(text, file or None, overrides)))


if __name__ == "__main__":
    main(sys.argv[1:])
