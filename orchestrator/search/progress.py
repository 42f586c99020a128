"""Live progress of a search: how far each study is, and its best so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import RLock

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.text import duration
from orchestrator.messages import Event, StageCommitted, StageFailed
from orchestrator.run.display import Display
from orchestrator.study.tried import Tried, TriedState, best_so_far, counted
from orchestrator.sweep.search import Goal


class SearchProgress(Display):
    """Listens to the scheduler and to the search, each on a thread of its own.

    Args:
        goals: what is sought; the first is shown.
        budget: trials a study.
        console: where to write; a live panel if it is a terminal.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        goals: tuple[Goal, ...],
        budget: int,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, clock)
        self.goals, self.budget = goals, budget
        self.trials: dict[str, dict[int, Tried]] = {}
        self.stages = 0
        self.phase = "searching"
        self._lock = RLock()

    def begin(self, study: str, trials: list[Tried]) -> None:
        """What a study has already."""
        with self._lock:
            self.trials[study] = {trial.number: trial for trial in trials}

    def told(self, study: str, trial: Tried) -> None:
        """A trial has its value, or has none."""
        with self._lock:
            self.trials.setdefault(study, {})[trial.number] = trial
            if trial.state == "failed" and trial.reason:
                self.warn(f"failed: {study} trial {trial.number}: {trial.reason}")
            self.refresh()

    def confirming(self, settings: int) -> None:
        """The budget is spent; that many settings are run on fresh seeds."""
        with self._lock:
            plural = "" if settings == 1 else "s"
            self.phase = f"confirming {settings} setting{plural} on fresh seeds"
            self.refresh(always=True)

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        with self._lock:
            super().__call__(event)

    def note(self, event: Event) -> None:
        """Take note of what a worker is at, and of what came of it."""
        super().note(event)
        if isinstance(event, StageCommitted):
            self.stages += event.ran
        elif isinstance(event, StageFailed):
            self.warn(f"a stage failed: {event.failure.message} (log: {event.failure.log_path})")

    def line(self) -> str:
        """'searching · worst_case/esd 12/40 best 0.63 · 31 stages ran · …'."""
        studies = [self._study(name) for name in self.trials]
        parts = [*studies, f"{self.stages} stages ran", f"{len(self.running)} tasks running"]
        return " · ".join([self.phase, *parts, duration(self.clock() - self.begin_s)])

    def panel(self) -> Group:
        """A bar a study, and what each worker is at."""
        table = Table.grid(padding=(0, 2))
        for name in self.trials:
            done = self._count(name)
            states = [f"{self._count(name, s)} {s}" for s in ("pruned", "failed")]
            bar = ProgressBar(total=self.budget, completed=done, width=30)
            table.add_row(bar, self._study(name), Text(", ".join(states), style="dim"))
        for _, text in self.running.values():
            table.add_row(Text("●", style="cyan"), Text(text, style="dim"), "")
        head = f"{self.phase} · {self.stages} stages ran · {duration(self.clock() - self.begin_s)}"
        return Group(Text(head), table)

    def _study(self, name: str) -> str:
        """'worst_case/esd 12/40 best 0.63'."""
        curve = best_so_far(self._in_order(name), self.goals)
        best = curve[-1] if curve else None
        shown = "" if best is None else f" best {best:.2f}"
        return f"{name} {self._count(name)}/{self.budget}{shown}"

    def _count(self, name: str, *states: TriedState) -> int:
        wanted = states or ("done", "pruned", "failed")
        return sum(trial.state in wanted for trial in counted(self._in_order(name)))

    def _in_order(self, name: str) -> list[Tried]:
        return [trial for _, trial in sorted(self.trials[name].items())]
