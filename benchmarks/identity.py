"""Every stage digest and task id of the grid sweeps that ship: what a store's contents hang on.

A change that should move code and no result leaves the printed hash as it is:

    python -m benchmarks.identity           # every line, then the hash over all of them
    python -m benchmarks.identity --brief   # a hash a sweep, then the hash
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.registry import registry
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import load

SWEEPS = Path(__file__).parents[1] / "sweeps"
KINDS = ("base", "unlearner", "material", "dataset", "update", "metric", "recipe", "executor")


def lines(sweep: Sweep) -> Iterator[str]:
    """A line a stage and a line a task, in the plan's order; the store is taken to be empty."""
    plan = make_plan(sweep)
    for stage in plan.stages:
        yield f"stage {stage.kind} {stage.digest}"
    for task in make_tasks(plan, set(), sweep.keep, sweep.resources.has_score_workers):
        yield f"task {task.id}"


def plugins() -> Iterator[str]:
    """A line a plug-in: what a stage's identity knows of it."""
    for kind in KINDS:
        for name, plugin in registry(kind).items():
            yield f"plugin {kind} {name} {plugin.version}"


def groups() -> Iterator[tuple[str, list[str]]]:
    """The lines by what they are of: the plug-ins, then each sweep that is no search."""
    yield "plug-ins", list(plugins())
    for path in sorted(SWEEPS.rglob("*.yaml")):
        sweep = load(path)
        if sweep.search is None:
            yield str(path.relative_to(SWEEPS)), list(lines(sweep))


def hash_of(found: list[str]) -> str:
    """SHA-256 over the lines."""
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def main() -> None:
    """Print the lines and their hash."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--brief", action="store_true", help="a hash a sweep instead of its lines")
    brief = parser.parse_args().brief
    every: list[str] = []
    for name, found in groups():
        every += found
        print(f"{hash_of(found)}  {name}: {len(found)}" if brief else "\n".join(found))
    print(f"{hash_of(every)}  all: {len(every)}")


if __name__ == "__main__":
    main()
