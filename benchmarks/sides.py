"""Two sides of a comparison, measured in turn in one process, and the table of many."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

Work = Callable[[], float]
"""Does some of a side's work and says at what rate: steps or pictures a second."""


def wait_for_device() -> None:
    """Until a GPU has done all that it was given: only then is a time one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(amount: float, work: Callable[[], object]) -> float:
    """How much a second, if the work is that much."""
    wait_for_device()
    begin = time.perf_counter()
    work()
    wait_for_device()
    return amount / (time.perf_counter() - begin)


def rates(sides: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Each side's median rate over so many rounds, in which they take turns; one more is first, and
    not counted: it compiles, chooses kernels and fills caches.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            gc.collect()
            measured = work()
            if turn:
                found[name].append(measured)
    return {name: statistics.median(values) for name, values in found.items()}


@dataclass(frozen=True)
class Line:
    """A comparison: what both did a second, and how many times the peer's ours should be."""

    what: str
    unit: str
    ours: float
    peer: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        """Ours by the peer's."""
        return self.ours / self.peer

    @property
    def verdict(self) -> str:
        """Whether the target is met, in words; empty without one."""
        if self.target is None:
            return ""
        return "met" if self.ratio >= self.target else "not met"


def show(console: Console, title: str, lines: Sequence[Line]) -> None:
    """Print a table of comparisons."""
    table = Table("", "unit", "ours", "peer", "ratio", "target", "", title=title, box=None)
    for line in lines:
        target = "" if line.target is None else f"≥ {line.target:g}"
        table.add_row(
            line.what, line.unit, f"{line.ours:.3g}", f"{line.peer:.3g}", f"{line.ratio:.2f}",
            target, line.verdict,
        )  # fmt: skip
    console.print(table)
