"""The `reference` block: published numbers, which results show beside a sweep's own."""

from __future__ import annotations

from typing import Any

from orchestrator.config.fields import known, text
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.hints import suggest
from orchestrator.sweep.grid import Grid
from orchestrator.sweep.sweep import PUBLISHED, Reference
from orchestrator.sweep.trial import Scalar

KEYS = ("source", "rows")


def read_reference(at: At, grid: Grid | None) -> Reference | None:
    """Rows that name settings of the sweep by axes, and have numbers of them."""
    given = known(at, KEYS, KEYS)
    if len(given) < len(KEYS):
        return None
    source = text(given["source"])
    is_sound = grid is not None and not at.problems
    trials = [trial.params for trial in grid.expansion.trials] if grid and is_sound else []
    rows = []
    for item in given["rows"].items():
        row = item.node.plain()
        if not isinstance(row, dict) or not set(PUBLISHED) & row.keys():
            names = ", ".join(PUBLISHED)
            item.say(f"must map axes to values and have some of {names} but got {show(row)}")
            continue
        for name in PUBLISHED:
            if name in row and not _is_number(row[name]):
                item.say(f"{name} must be a number but got {show(row[name])}")
        axes = {name: value for name, value in row.items() if name not in PUBLISHED}
        if trials and not any(_fits(axes, params) for params in trials):
            axis = next((n for n in axes if not any(n in params for params in trials)), None)
            every = dict.fromkeys(name for params in trials for name in params)
            hint = f": {axis!r} is no axis{suggest(axis, every)}" if axis else ""
            item.say(f"no trial of this sweep has {axes}{hint}")
        rows.append(row)
    return Reference(source, tuple(rows)) if source and rows else None


def _fits(axes: dict[str, Any], params: Any) -> bool:
    return all(name in params and params[name] == value for name, value in axes.items())


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
