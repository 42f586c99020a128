"""Samplers against each other on a recorded surface, where repeats cost nothing.

The surface is the dense grid of sweeps/surface.yaml, measured once and kept beside this file as
Parquet; a learning rate between two of the grid's has the value of the nearer one. Every sampler
searches it from the same seeds, with the study that `resurge search` uses.

    python -m benchmarks.search [--repeats N] [--trials N] [--samplers tpe,random]
    python -m benchmarks.search --record [--home FOLDER]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track
from rich.table import Table

from orchestrator.home import Home
from orchestrator.results.trials_table import table, write
from orchestrator.run.job import open_job
from orchestrator.study.study import Study
from orchestrator.study.tried import best_so_far
from orchestrator.sweep.search import Search
from orchestrator.sweepfile.load import parse

SURFACE = Path(__file__).with_name("surface.parquet")
SWEEP = "sweeps/surface.yaml"
AXES = ("finetune.dataset", "finetune.adapter", "finetune.learning_rate", "finetune.steps")
RATE = "finetune.learning_rate"
SHOWN = (10, 25, 40)

SPACE = """
name: surface
base: shapes
concept: star
edits: [{unlearn: salun}, {finetune: {}}]
evaluate: {metrics: [concept_accuracy]}
search:
  maximize: resurgence
  space:
    finetune.dataset: [related, unrelated, novel]
    finetune.adapter: [full, lora]
    finetune.learning_rate: {log: [1.0e-4, 5.0e-3]}
    finetune.steps: {int: [25, 200], step: 25}
"""


class Surface:
    """The recorded values."""

    def __init__(self, path: Path) -> None:
        rows = pq.read_table(path).to_pylist()
        self.values = {tuple(row[axis] for axis in AXES): row["resurgence"] for row in rows}
        self.rates = sorted({row[RATE] for row in rows})

    def at(self, point: Mapping[str, Any]) -> float:
        """The value at a point of the space."""
        rate = min(self.rates, key=lambda r: abs(math.log(r / point[RATE])))
        return float(self.values[tuple(rate if axis == RATE else point[axis] for axis in AXES)])


def record(home: Home, path: Path) -> None:
    """Keep the axes and the resurgence of the sweep that was run."""
    job = open_job(SWEEP, (), home)
    rows = table(job.plan, job.store)
    if rows["resurgence"].null_count:
        raise SystemExit(f"the surface is not complete; first `resurge run {SWEEP}`")
    write(rows.select([*AXES, "resurgence"]), path)


def curve(surface: Surface, search: Search, storage: str, name: str) -> list[float]:
    """The best value after each trial."""
    study = Study(storage, name, search, search.space)
    while (tried := study.ask()) is not None:
        study.tell(tried.number, [surface.at(tried.point)], {}, {})
    return [value or 0.0 for value in best_so_far(study.tried(), study.goals)]


def curves(surface: Surface, sampler: str, trials: int, repeats: int) -> np.ndarray:
    """Best so far: shape (repeats, trials)."""
    base = parse(SPACE).search
    assert base is not None
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in track(range(repeats), sampler, transient=True):
            changed = {"sampler": sampler, "trials": trials, "seed": seed}
            search = replace(base, settings=base.settings.model_copy(update=changed))
            storage = f"journal://{folder}/{sampler}.log"
            found.append(curve(surface, search, storage, f"{sampler} {seed}"))
    return np.array(found)


def show(surface: Surface, found: Mapping[str, np.ndarray], console: Console) -> None:
    """Medians and quartiles over the repeats, and how often a sampler is ahead of random."""
    top = max(surface.values.values())
    repeats, trials = next(iter(found.values())).shape
    console.print(
        f"{len(surface.values)} recorded settings, the largest resurgence {top:.3f}; "
        f"{repeats} repeats; median of the best so far [quartiles]"
    )
    sheet = Table("sampler", box=None, pad_edge=False)
    counts = [count for count in SHOWN if count <= trials]
    for count in counts:
        sheet.add_column(f"after {count} trials", justify="right")
    for sampler, values in found.items():
        cells = []
        for count in counts:
            low, middle, high = np.percentile(values[:, count - 1], (25, 50, 75))
            cells.append(f"{middle:.3f} \\[{low:.3f}, {high:.3f}]")
        sheet.add_row(sampler, *cells)
    console.print(sheet)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trials", type=int, default=max(SHOWN))
    parser.add_argument("--samplers", default="tpe,random")
    parser.add_argument("--record", action="store_true", help="keep the surface of a run sweep")
    parser.add_argument("--home", type=Path)
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    if given.record:
        record(Home.find(given.home), SURFACE)
        console.print(str(SURFACE))
        return
    surface = Surface(SURFACE)
    found = {
        sampler: curves(surface, sampler, given.trials, given.repeats)
        for sampler in given.samplers.split(",")
    }
    show(surface, found, console)


if __name__ == "__main__":
    main()
