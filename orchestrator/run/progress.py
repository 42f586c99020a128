"""Live progress: a panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.stage import Stage
from orchestrator.core.text import duration, number
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageProgress,
    StageStarted,
    TaskEnded,
    TaskHandedBack,
    TaskRetried,
    WorkerLost,
)
from orchestrator.plan.labels import stage_label, trial_label
from orchestrator.plan.plan import Plan
from orchestrator.results.measure import primary

PLAIN_EVERY_S = 15.0


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


class Progress:
    """Listens to a scheduler and shows how far the sweep is.

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
        self.plan = plan
        self.console = console
        self.clock = clock
        self.begin_s = self.said_s = clock()
        self.stages = {stage.key: stage for stage in plan.stages}
        self.done = set(done)
        self.failed: set[str] = set()
        self.running: dict[str, tuple[str, str]] = {}
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
        self.primary = {score.key for point in points if (score := primary(point))}
        self.live: Live | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live = Live(self._panel(), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        else:
            self.console.print(self._line(), soft_wrap=True)
        return self

    def __exit__(self, *details: Any) -> None:
        if self.live is not None:
            self.live.update(self._panel())
            self.live.__exit__(*details)
        else:
            self.console.print(self._line(), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        self._note(event)
        if self.live is not None:
            self.live.update(self._panel())
        elif self.clock() - self.said_s >= PLAIN_EVERY_S:
            self.said_s = self.clock()
            self.console.print(self._line(), soft_wrap=True)

    def _note(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self.running[event.task_id] = (event.key, "")
        elif isinstance(event, StageProgress):
            numbers = " ".join(f"{k} {number(v)}" for k, v in event.numbers.items())
            self.running[event.task_id] = (event.key, f"{event.done}/{event.total} {numbers}")
        elif isinstance(event, StageCommitted):
            self._committed(event)
        elif isinstance(event, StageFailed):
            self.failed.add(event.key)
            why = event.failure
            self._say(f"failed: {self._label(event.key)}: {why.message} (log: {why.log_path})")
        elif isinstance(event, WorkerLost):
            self.running.pop(event.task_id, None)
            self._say(f"{event.worker} was lost ({event.reason}); its task is tried again")
        elif isinstance(event, TaskRetried):
            self._say(f"not done yet: {event.reason}")
        elif isinstance(event, TaskHandedBack):
            self.running.pop(event.task_id, None)
            self._say(f"{event.worker} was asked to leave; its task goes on elsewhere")
        elif isinstance(event, TaskEnded):
            self.running.pop(event.task_id, None)

    def _committed(self, event: StageCommitted) -> None:
        stage = self.stages[event.key]
        self.done.add(event.key)
        self.estimate.committed(stage, event.record.seconds if event.ran else 0.0)
        for index in self.trials_of[event.key]:
            self.left[index].discard(event.key)
        if event.key in self.primary and "erased" in event.record.metrics:
            self.latest = f"{self._model_label(stage)}: {event.record.metrics['erased']:.2f}"

    def _say(self, text: str) -> None:
        self.console.print(Text(text, style="red"))

    def _label(self, key: str) -> str:
        return stage_label(self.stages[key])

    def _model_label(self, stage: Stage) -> str:
        """'erased concept after esd related … steps=100'."""
        trials = [self.plan.trials[i] for i in self.trials_of[stage.key]]
        exact = [t for t in trials if stage in t.final.scores]
        if stage.model.kind in ("finetune", "merge") and exact:
            return f"erased concept after {trial_label(self.plan, exact[0])}"
        return f"erased concept after {stage_label(stage.model)}"

    def _counts(self) -> tuple[int, int, int, int]:
        """Trials done, running, failed or skipped, and in all."""
        active = {key for key, _ in self.running.values()}
        done = sum(not left for left in self.left)
        failed = sum(not self.failed.isdisjoint(left) for left in self.left)
        running = sum(
            not active.isdisjoint(own) and self.failed.isdisjoint(left)
            for own, left in zip(self.own, self.left, strict=True)
        )
        return done, running, failed, len(self.left)

    def _line(self) -> str:
        done, running, failed, total = self._counts()
        parts = [
            f"trials {done}/{total} done",
            f"{running} running",
            f"{failed} failed or skipped",
            f"stages {len(self.done)}/{len(self.stages)}",
            self._left_text(),
        ]
        return " · ".join([*parts, self.latest] if self.latest else parts)

    def _left_text(self) -> str:
        left = self.estimate.left_s()
        if left is None:
            return f"{duration(self.clock() - self.begin_s)} so far"
        return f"about {duration(left)} left" if left else "nothing left"

    def _panel(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for key, text in self.running.values():
            table.add_row(Text("  ●", style="cyan"), self._label(key), Text(text, style="dim"))
        bar = ProgressBar(total=len(self.stages), completed=len(self.done), width=60)
        return Group(bar, Text(self._line()), table)
