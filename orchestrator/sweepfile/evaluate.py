"""The `evaluate` block: what is drawn and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import cast

from orchestrator.config.fields import fill, flag, known, single, texts
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import Asked, MetricPlugin
from orchestrator.core.registry import find, registry
from orchestrator.sweep.grid import Grid
from orchestrator.sweep.sweep import Evaluate
from orchestrator.sweepfile.grid import concepts


def is_given(entries: Mapping[str, At], key: str) -> bool:
    """Whether a key whose default is null has a value."""
    return key in entries and entries[key].value is not None


def read_evaluate(at: At, grid: Grid | None) -> Evaluate | None:
    recipe = find("recipe", "sample")
    own = ("metrics", "retain", "prompts", "controls")
    start = len(at.problems)
    given = known(at, (*own, *recipe.Settings.model_fields), required=("metrics",))
    sample = fill(recipe.Settings, {k: v for k, v in given.items() if k not in own}, at)
    retain = prompts = None
    if is_given(given, "retain"):
        kept, erased = given["retain"], grid.all_concepts() if grid else ()
        allowed = grid.base.concepts() if grid else None
        retain = concepts(kept, allowed) if kept.value != [] else ()
        for item in kept.items():
            if item.value in erased:
                item.say(f"{item.value!r} is erased by this sweep and cannot be retained too")
    if is_given(given, "prompts"):
        prompts = texts(given["prompts"])
        for item in given["prompts"].items():
            if isinstance(item.value, str) and "{concept}" not in item.value:
                item.say(f"must contain {{concept}} but got {show(item.value)}")
    controls = flag(given["controls"]) if "controls" in given else True
    found = Evaluate((), recipe(sample), retain, prompts, controls) if sample else None
    is_sound = len(at.problems) == start
    asked = list(found.asked(grid)) if grid and found and is_sound else []
    metrics = _metrics(given["metrics"], grid, asked) if "metrics" in given else ()
    return replace(found, metrics=metrics) if found and metrics else None


def _metrics(at: At, grid: Grid | None, asked: Sequence[Asked]) -> tuple[MetricPlugin, ...]:
    if not at.items():
        at.say(f"must have at least one metric but is empty{suggest('', registry('metric'))}")
    found: list[MetricPlugin] = []
    for item in at.items():
        pair = single(item, "metric")
        if pair is None:
            continue
        metric = cast("MetricPlugin", pair[0](pair[1]))
        if any(metric.name == other.name for other in found):
            item.say(f"duplicate value: the metric {metric.name!r} stands before")
        if grid is not None:
            misfits = [metric.problems(grid.base, concept) for concept in grid.all_concepts()]
            misfits += [metric.problems_with(one) for one in asked]
            for what in chain.from_iterable(misfits):
                item.say(what)
        found.append(metric)
    return tuple(found)
