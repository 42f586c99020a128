"""Live progress of a search: how far each study is, and its best so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import RLock
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.core.text import duration, number
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageProgress,
    StageStarted,
    TaskEnded,
    WorkerLost,
)
from orchestrator.run.progress import PLAIN_EVERY_S
from orchestrator.study.tried import Tried, TriedState, best_so_far, counted
from orchestrator.sweep.search import Goal


class SearchProgress:
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
        self.goals, self.budget, self.console, self.clock = goals, budget, console, clock
        self.begin_s = self.said_s = clock()
        self.trials: dict[str, dict[int, Tried]] = {}
        self.running: dict[str, str] = {}
        self.stages = 0
        self.phase = "searching"
        self.live: Live | None = None
        self._lock = RLock()

    def __enter__(self) -> SearchProgress:
        if self.console.is_terminal:
            self.live = Live(self._panel(), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        if self.live is not None:
            self.live.update(self._panel())
            self.live.__exit__(*details)
        else:
            self._say_line()

    def begin(self, study: str, trials: list[Tried]) -> None:
        """What a study has already."""
        with self._lock:
            self.trials[study] = {trial.number: trial for trial in trials}

    def told(self, study: str, trial: Tried) -> None:
        """A trial has its value, or has none."""
        with self._lock:
            self.trials.setdefault(study, {})[trial.number] = trial
            if trial.state == "failed" and trial.reason:
                self._warn(f"failed: {study} trial {trial.number}: {trial.reason}")
            self._refresh()

    def confirming(self, settings: int) -> None:
        """The budget is spent; that many settings are run on fresh seeds."""
        with self._lock:
            plural = "" if settings == 1 else "s"
            self.phase = f"confirming {settings} setting{plural} on fresh seeds"
            self._refresh(always=True)

    def __call__(self, event: Event) -> None:
        """Take note of a stage."""
        with self._lock:
            self._note(event)
            self._refresh()

    def _note(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self.running[event.task_id] = ""
        elif isinstance(event, StageProgress):
            numbers = " ".join(f"{k} {number(v)}" for k, v in event.numbers.items())
            self.running[event.task_id] = f"{event.done}/{event.total} {numbers}"
        elif isinstance(event, StageCommitted):
            self.stages += event.ran
        elif isinstance(event, TaskEnded):
            self.running.pop(event.task_id, None)
        elif isinstance(event, StageFailed):
            self._warn(f"a stage failed: {event.failure.message} (log: {event.failure.log_path})")
        elif isinstance(event, WorkerLost):
            self.running.pop(event.task_id, None)
            self._warn(f"{event.worker} was lost ({event.reason}); its task is tried again")

    def _refresh(self, always: bool = False) -> None:
        if self.live is not None:
            self.live.update(self._panel())
        elif always or self.clock() - self.said_s >= PLAIN_EVERY_S:
            self._say_line()

    def _say_line(self) -> None:
        self.said_s = self.clock()
        self.console.print(self._line(), soft_wrap=True)

    def _warn(self, text: str) -> None:
        self.console.print(Text(text, style="red"), soft_wrap=True)

    def _line(self) -> str:
        studies = [self._study(name) for name in self.trials]
        parts = [*studies, f"{self.stages} stages ran", f"{len(self.running)} tasks running"]
        return " · ".join([self.phase, *parts, duration(self.clock() - self.begin_s)])

    def _study(self, name: str) -> str:
        """'worst_case/esd 12/40 best +0.63'."""
        curve = best_so_far(self._in_order(name), self.goals)
        best = curve[-1] if curve else None
        shown = "" if best is None else f" best {best:.2f}"
        return f"{name} {self._count(name)}/{self.budget}{shown}"

    def _in_order(self, name: str) -> list[Tried]:
        return [trial for _, trial in sorted(self.trials[name].items())]

    def _count(self, name: str, *states: TriedState) -> int:
        wanted = states or ("done", "pruned", "failed")
        return sum(trial.state in wanted for trial in counted(self._in_order(name)))

    def _panel(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name in self.trials:
            done = self._count(name)
            states = [f"{self._count(name, s)} {s}" for s in ("pruned", "failed")]
            bar = ProgressBar(total=self.budget, completed=done, width=30)
            table.add_row(bar, self._study(name), Text(", ".join(states), style="dim"))
        for text in self.running.values():
            table.add_row(Text("●", style="cyan"), Text(text, style="dim"), "")
        head = f"{self.phase} · {self.stages} stages ran · {duration(self.clock() - self.begin_s)}"
        return Group(Text(head), table)
