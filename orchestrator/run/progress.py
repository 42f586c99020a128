"""Live progress of a sweep: its trials and stages, and the time that is left."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Self

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.stage import Stage
from orchestrator.core.text import duration
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    TaskHandedBack,
    TaskRetried,
)
from orchestrator.plan.labels import stage_label, trial_label
from orchestrator.plan.plan import Plan
from orchestrator.run.display import Display


class TimeLeft:
    """Time left, from how long stages of each sort have taken so far in this run."""

    def __init__(self, pending: Collection[Stage], workers: int) -> None:
        self.pending = {stage.key: stage for stage in pending}
        self.workers = workers
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.units: dict[tuple[str, str], float] = defaultdict(float)
        self.trained: dict[str, int] = defaultdict(int)

    def committed(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that is done."""
        sort = (stage.kind, stage.plugin)
        self.seconds[sort] += seconds
        self.units[sort] += self._work(stage)
        self.pending.pop(stage.key, None)
        if stage.trajectory:
            self.trained[stage.trajectory] = max(self.trained[stage.trajectory], stage.steps)

    def left_s(self) -> float | None:
        """Seconds left; None until a stage of every pending sort has been seen."""
        total = 0.0
        trained = dict(self.trained)
        for stage in sorted(self.pending.values(), key=lambda s: s.steps):
            sort = (stage.kind, stage.plugin)
            if not self.units[sort]:
                return None
            work = float(self._work(stage, trained))
            if stage.trajectory:
                trained[stage.trajectory] = stage.steps
            total += self.seconds[sort] / self.units[sort] * work
        return total / self.workers

    def _work(self, stage: Stage, trained: dict[str, int] | None = None) -> int:
        """Steps that a fine-tune adds to its trajectory; 1 for any other stage."""
        if not stage.trajectory:
            return 1
        before = (self.trained if trained is None else trained).get(stage.trajectory, 0)
        return max(1, stage.steps - before)


class Progress(Display):
    """Shows how far a sweep is.

    Args:
        plan: what is being run.
        done: keys of the stages that need not run.
        workers: how many run at a time.
        console: where to write; a live panel if it is a terminal.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        plan: Plan,
        done: Collection[str],
        workers: int,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, clock)
        self.plan = plan
        self.stages = {stage.key: stage for stage in plan.stages}
        self.done = set(done)
        self.failed: set[str] = set()
        self.latest = ""
        self.estimate = TimeLeft([s for s in plan.stages if s.key not in self.done], workers)
        self.trials_of: dict[str, list[int]] = defaultdict(list)
        self.left = [set[str]() for _ in plan.trials]
        self.own = [{stage.key for stage in trial.final.stages()} for trial in plan.trials]
        for index, trial in enumerate(plan.trials):
            for stage in trial.stages():
                self.trials_of[stage.key].append(index)
                if stage.key not in self.done:
                    self.left[index].add(stage.key)
        points = [p for t in plan.trials for p in (t.base, t.unlearned, t.final)]
        self.primary = {score.key for point in points if (score := point.primary)}

    def __enter__(self) -> Self:
        super().__enter__()
        if self.live is None:
            self.refresh(always=True)
        return self

    def note(self, event: Event) -> None:
        """Take note of what a worker is at, and of what came of it."""
        super().note(event)
        if isinstance(event, StageCommitted):
            self._committed(event)
        elif isinstance(event, StageFailed):
            self.failed.add(event.key)
            what, why = stage_label(self.stages[event.key]), event.failure
            self.warn(f"failed: {what}: {why.message} (log: {why.log_path})")
        elif isinstance(event, TaskRetried):
            self.warn(f"not done yet: {event.reason}")
        elif isinstance(event, TaskHandedBack):
            self.warn(f"{event.worker} was asked to leave; its task goes on elsewhere")

    def _committed(self, event: StageCommitted) -> None:
        stage = self.stages[event.key]
        self.done.add(event.key)
        self.estimate.committed(stage, event.record.seconds if event.ran else 0.0)
        for index in self.trials_of[event.key]:
            self.left[index].discard(event.key)
        if event.key in self.primary and "erased" in event.record.metrics:
            what = self._model_label(stage)
            self.latest = f"erased concept after {what}: {event.record.metrics['erased']:.2f}"

    def _model_label(self, stage: Stage) -> str:
        """'esd related … steps=100': the trial whose model that is, or else the model."""
        trials = [self.plan.trials[i] for i in self.trials_of[stage.key]]
        exact = [t for t in trials if stage in t.final.scores]
        if stage.model.kind in ("finetune", "merge") and exact:
            return trial_label(self.plan, exact[0])
        return stage_label(stage.model)

    def line(self) -> str:
        """'trials 3/12 done · 2 running · …'; a trial is running if one of its own stages is."""
        active = {key for key, _ in self.running.values()}
        running = sum(
            not active.isdisjoint(own) and self.failed.isdisjoint(left)
            for own, left in zip(self.own, self.left, strict=True)
        )
        failed = sum(not self.failed.isdisjoint(left) for left in self.left)
        left_s = self.estimate.left_s()
        if left_s is None:
            time_text = f"{duration(self.clock() - self.begin_s)} so far"
        else:
            time_text = f"about {duration(left_s)} left" if left_s else "nothing left"
        parts = [
            f"trials {sum(not left for left in self.left)}/{len(self.left)} done",
            f"{running} running",
            f"{failed} failed or skipped",
            f"stages {len(self.done)}/{len(self.stages)}",
            time_text,
        ]
        return " · ".join([*parts, self.latest] if self.latest else parts)

    def panel(self) -> Group:
        """A bar, the line, and what each worker is at."""
        table = Table.grid(padding=(0, 2))
        for key, text in self.running.values():
            label = stage_label(self.stages[key])
            table.add_row(Text("  ●", style="cyan"), label, Text(text, style="dim"))
        bar = ProgressBar(total=len(self.stages), completed=len(self.done), width=60)
        return Group(bar, Text(self.line()), table)
