"""What reading a large sweep's store costs: keys, records, results, and a run of what is there.

The store is filled with records and score files as workers write them, the numbers drawn at random;
then each kind of reading is timed in a process that has read nothing before.

    python -m benchmarks.store [TRIALS …]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from orchestrator.core.artifacts import DATASET, EXAMPLES, IMAGES_DRAWN, VALUES, ValueRow
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.measure import TrialReader
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

SIZES = (1_000, 10_000)
METHODS = ("uce", "esd", "salun", "spm", "none")
STEPS = (50, 100, 200, 400)
PROMPTS, IMAGES = 10, 4
SWEEP = """
name: store
base: shapes
concept: star
edits:
  - unlearn: [{methods}]
  - finetune:
      dataset: [related, unrelated]
      learning_rate: [{rates}]
      steps: [{steps}]
evaluate: {{metrics: [concept_accuracy], images_per_prompt: 4, set: templates, controls: false}}
seeds: 1
"""


def plan_of(trials: int) -> Plan:
    """A sweep of about that many trials."""
    count = max(1, trials // (len(METHODS) * 2 * len(STEPS)))
    rates = ", ".join(f"{1e-6 * (1 + i):.9f}" for i in range(count))
    text = SWEEP.format(methods=", ".join(METHODS), rates=rates, steps=", ".join(map(str, STEPS)))
    return make_plan(parse(text))


def fill(store: Store, plan: Plan) -> None:
    """Commit every stage."""
    draw = np.random.default_rng(0)
    for stage in plan.stages:
        with store.scratch() as folder:
            files: dict[str, Path] = {}
            metrics: dict[str, float] = {}
            if stage.kind == "sample":
                metrics = {IMAGES_DRAWN: float(len(stage.settings["probes"]))}
            if stage.kind == "prepare":
                metrics = {EXAMPLES: 256.0, "size_px": 32.0}
                files = {DATASET.name: folder / DATASET.name}
                files[DATASET.name].write_bytes(b"pictures")
            if stage.kind == "score":
                assert stage.parent is not None
                rows = list(_rows(stage.parent, draw))
                files = {VALUES.name: folder / VALUES.name}
                VALUES.write(files[VALUES.name], rows)
                roles = {row.role for row in rows}
                metrics = {
                    role: float(np.mean([row.value for row in rows if row.role == role]))
                    for role in roles
                }
            store.commit(stage, files, metrics, "2026-01-01T00:00:00+00:00", 1.0, {})


def _rows(sample: Stage, draw: np.random.Generator) -> list[ValueRow]:
    each = int(sample.settings["settings"]["images_per_prompt"])
    return [
        ValueRow(probe["role"], probe["concept"], probe["prompt"], number, image, draw.random())
        for number, probe in enumerate(sample.settings["probes"])
        for image in range(each)
    ]


def read(folder: str, trials: int) -> None:
    """In a process of its own: time each kind of reading and print seconds."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        work()
        spent[name] = time.perf_counter() - begin

    plans: list[Plan] = []
    timed("plan", lambda: plans.append(plan_of(trials)))
    [plan], store = plans, Store(folder).packed()
    timed("keys", store.keys)
    timed("every record", lambda: [store.get(stage) for stage in plan.stages])
    store.flush()
    timed("results", lambda: TrialReader(plan, Store(folder).packed()).all())
    print(" ".join(f"{name.replace(' ', '_')}={seconds:.3f}" for name, seconds in spent.items()))


def main(arguments: Sequence[str]) -> None:
    """Measure every size and print a table."""
    if arguments and arguments[0] == "read":
        read(arguments[1], int(arguments[2]))
        return
    console = Console()
    rows: list[list[str]] = []
    columns: list[str] = []
    for trials in [int(text) for text in arguments] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_of(trials)
            begin = time.perf_counter()
            fill(Store(folder), plan)
            filled = time.perf_counter() - begin
            for turn in ("first", "again"):
                command = [sys.executable, "-m", "benchmarks.store", "read", folder, str(trials)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = dict(pair.split("=") for pair in done.stdout.splitlines()[-1].split())
                columns = ["trials", "stages", "", *(name.replace("_", " ") for name in found)]
                size = [f"{len(plan.trials):,}", f"{len(plan.stages):,}", turn]
                rows.append([*size, *(f"{float(value):.2f} s" for value in found.values())])
            console.print(f"{trials:,} trials written in {filled:.1f} s")
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
