"""Published numbers beside a sweep's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from orchestrator.cli.show.tables import new_table, print_whole, score
from orchestrator.core.text import number
from orchestrator.results.settings import Aggregate, Summary
from orchestrator.sweep.sweep import PUBLISHED, Reference


def show_reference(reference: Reference, summary: Summary, console: Console) -> None:
    """A line a published row: its numbers, behind each this sweep's own of the same settings."""
    axes = list(dict.fromkeys(n for row in reference.rows for n in row if n not in PUBLISHED))
    numbers = [name for name in PUBLISHED if any(name in row for row in reference.rows)]
    titles = [title for name in numbers for title in (f"{name}\npublished", "\nhere")]
    sheet = new_table(*axes, right=titles)
    for row in reference.rows:
        cells = [number(row[axis]) if axis in row else "" for axis in axes]
        for name in numbers:
            cells += [f"{row[name]:.3f}" if name in row else "", score(_own(row, name, summary))]
        sheet.add_row(*cells)
    print_whole(sheet, console)
    note = f"published: {reference.source}; here by this sweep's own judge"
    console.print(note, style="dim", soft_wrap=True, highlight=False)


def _own(row: Mapping[str, Any], name: str, summary: Summary) -> float | None:
    """The mean over this sweep's settings that the row names; of the model after unlearning."""
    axes = {n: value for n, value in row.items() if n not in PUBLISHED}
    fitting = [
        s
        for s in summary.settings
        if not s.is_control and all(s.params.get(n) == value for n, value in axes.items())
    ]
    found = [value for s in fitting if (value := _number(s, name)) is not None]
    return sum(found) / len(found) if found else None


def _number(setting: Aggregate, name: str) -> float | None:
    if name == "retained":  # a setting's is of its final model: that without fine-tuning
        return None if setting.is_tuned else setting.retained
    return setting.base if name == "base" else setting.unlearned
