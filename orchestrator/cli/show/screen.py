"""The console that everything is printed on: what a user wrote is text, and never markup."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from orchestrator.core.text import visible


class Screen(Console):
    """A console that takes every text as it is: "[red]" is five characters, ESC is written out.

    What is to stand out is given as a `Text` of a style, or with `style=`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text on its way to the page: every `str` passes here, in cells and branches too."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Anything on its way to the page; a `Text` may have been made of a user's."""
        if isinstance(renderable, Text) and visible(renderable.plain) != renderable.plain:
            whole, was = visible(renderable.plain), renderable
            renderable = Text(whole, was.style, no_wrap=was.no_wrap, end=was.end)
        return super().render(renderable, options)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (`| head -1`): the command goes on, in silence."""
        self.quiet = True
        stop_writing()

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A line that changes while something goes on."""
        return _PlainStatus(_as_text(status), console=self, **options)


class _PlainStatus(Status):
    """rich's own reads what it is given as markup, whatever the console says."""

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(None if status is None else _as_text(status), **options)


def stop_writing() -> None:
    """From now on what is written to standard output goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):  # it is no file, or closed: nothing goes anywhere
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _as_text(status: RenderableType) -> RenderableType:
    return Text(visible(status)) if isinstance(status, str) else status


def bold(start: str, rest: str = "") -> Text:
    """A line that begins in bold."""
    return Text.assemble((start, "bold"), rest)
