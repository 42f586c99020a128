"""What several tables share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table

from orchestrator.core.text import number, short_name, visible
from orchestrator.sweep.trial import Scalar


class Sheet(Table):
    """A table whose cells are lines, whatever a user has written into them."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """A row of texts as they are, nothing hidden in them."""
        shown = (visible(cell, keep="") if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def new_table(*titles: str, right: Iterable[str] = ()) -> Table:
    """An empty table as all of ours look; the columns of `right`, behind the others, hold numbers.

    Lines of a cell may break. `print_whole` prints a table in which they must not.
    """
    table = Sheet(*titles, box=None, pad_edge=False, header_style="bold")
    for title in right:
        table.add_column(title, justify="right")
    return table


def print_whole(sheet: Table, console: Console) -> None:
    """Print a table at its natural width: a narrow console wraps its lines, and cuts nothing."""
    unbounded = console.options.update(max_width=1_000)
    natural = Measurement.get(console, unbounded, sheet).maximum
    segments = console.render(sheet, unbounded.update(max_width=natural))
    console.print(Segments(segments), end="", soft_wrap=True)


def header(axis: str, axes: Iterable[str]) -> str:
    """The axis's last word where no other axis ends in it."""
    last = axis.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in axes) == 1
    return short_name(last if alone else axis)


def axis_cells(params: Mapping[str, Scalar], axes: Iterable[str]) -> list[str]:
    """A setting's values of the axes."""
    values = [params.get(axis) for axis in axes]
    return ["" if value is None else number(value) for value in values]


def score(value: float | None) -> str:
    """A score with two digits; a dash where there is none yet."""
    return "–" if value is None else f"{value:.2f}"
