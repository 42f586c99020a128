"""How far something is: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.core.text import number
from orchestrator.messages import (
    Event,
    StageProgress,
    StageStarted,
    TaskEnded,
    TaskHandedBack,
    TaskWaits,
    WorkerLost,
)

PLAIN_EVERY_S = 15.0


class Display(ABC):
    """Listens to a scheduler. A subclass says what there is to see.

    Args:
        console: where to write; a live panel if it is a terminal.
        clock: seconds; for tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.clock = clock
        self.begin_s = self.said_s = clock()
        self.running: dict[str, tuple[str, str]] = {}
        """By task the key of the stage that it is at, and how far that is."""
        self.live: Live | None = None

    @abstractmethod
    def panel(self) -> RenderableType:
        """Everything, for a terminal."""

    @abstractmethod
    def line(self) -> str:
        """The same in a line."""

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live = Live(self.panel(), console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.refresh(always=True)
        if self.live is not None:
            self.live.__exit__(*details)

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it."""
        self.note(event)
        self.refresh()

    def note(self, event: Event) -> None:
        """Take note of what a worker is at."""
        if isinstance(event, StageStarted):
            self.running[event.task_id] = (event.key, "")
        elif isinstance(event, StageProgress):
            numbers = " ".join(f"{k} {number(v)}" for k, v in event.numbers.items())
            self.running[event.task_id] = (event.key, f"{event.done}/{event.total} {numbers}")
        elif isinstance(event, TaskEnded | TaskHandedBack | WorkerLost):
            self.running.pop(event.task_id, None)
        if isinstance(event, WorkerLost):
            self.warn(f"{event.worker} was lost ({event.reason}); its task is tried again")
        elif isinstance(event, TaskWaits):
            self.warn(event.reason)

    def refresh(self, always: bool = False) -> None:
        """Show how far it is; in lines only now and then, unless told to."""
        if self.live is not None:
            self.live.update(self.panel())
        elif always or self.clock() - self.said_s >= PLAIN_EVERY_S:
            self.said_s = self.clock()
            self.console.print(self.line(), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say what went wrong, beside the panel or between the lines."""
        self.console.print(Text(text, style="red"), soft_wrap=True)
