"""The worst settings of a search as a sweep of its own, to be run on another base or method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.core.errors import ResurgeError
from orchestrator.study.points import PointPlanner
from orchestrator.study.tried import Tried, best
from orchestrator.study.words import point_text
from orchestrator.study.worst_case import WorstCase, keeping
from orchestrator.sweep.grid import point_grid
from orchestrator.sweep.space import point_key
from orchestrator.sweep.sweep import Sweep

NO_AXIS = ("search", "zip", "include", "exclude")
LONGEST_NAME = 80
Recipe = dict[str, Any]
"""Settings by their flat names, each with its one value."""


def worst_sweep(sweep: Sweep, cases: Sequence[WorstCase]) -> dict[str, Any]:
    """A sweep file's values: every method of the search by every worst setting, on the fresh seeds.

    What `for_each` held fixed is an axis again, so that what is worst for one method is measured on
    all of them; what is confirmed already is in the store.

    Raises:
        ResurgeError: no study has a worst case.
    """
    assert sweep.search is not None  # there are no cases otherwise
    found = [tried for case in cases if (tried := worst_trial(case)) is not None]
    if not found:
        raise ResurgeError("there is no worst case to save: no setting kept every bound")
    first, *others = _recipes(sweep, found)
    grid = point_grid(sweep.grid, first)
    whole = replace(sweep, name=f"{sweep.name}_worst"[:LONGEST_NAME], grid=grid).canonical()
    values = {name: value for name, value in whole.items() if name not in NO_AXIS}
    values["seeds"] = list(PointPlanner(sweep).fresh_seeds)
    if others:
        values["include"] = [{name: [value] for name, value in one.items()} for one in others]
    return values


def worst_trial(case: WorstCase) -> Tried | None:
    """The trial of the confirmed worst case; of a search that confirms none, its best."""
    if case.worst is not None:
        return case.worst.tried
    if case.confirmed:
        return None
    return next(iter(best(keeping(case.trials, case.bounds), case.goals, 1)), None)


def about(case: WorstCase) -> str:
    """'worst_case/esd: related lora lr=1e-3 steps=200, resurgence 0.41 [0.15, 0.68]'."""
    tried, name = worst_trial(case), case.goals[0].name
    if tried is None:
        return f"{case.title}: no worst case"
    where = point_text(tried.point, case.space)
    if case.worst is None or case.worst.goal is None:
        return f"{case.title}: {where}, {name} {tried.values[0]:.2f} as searched"
    goal = case.worst.goal
    return f"{case.title}: {where}, {name} {goal.value:.2f} [{goal.low:.2f}, {goal.high:.2f}]"


def _recipes(sweep: Sweep, found: Iterable[Tried]) -> list[Recipe]:
    """Each worst setting once, without what `for_each` held fixed; all name the same settings."""
    assert sweep.search is not None
    points = [{k: v for k, v in t.point.items() if k not in sweep.search.for_each} for t in found]
    keys = {edit.key for edit in sweep.edits if edit.kind == "finetune"}
    heads = {edit.head for edit in sweep.edits}
    shared = {
        name: None
        for point in points
        for name in point
        if name.rpartition(".")[0] in keys and name not in heads
    }
    recipes = []
    for point in points:
        grid = point_grid(sweep.grid, point)
        edits = {edit.key: edit for edit in grid.expansion.trials[0].edits}
        # A plug-in's own settings, which the file gives beside its name.
        full: Recipe = {
            f"{edit.key}.{choice.label}.{name}": values[0]
            for edit in grid.edits
            if edit.head in point
            for choice in edit.choices
            for name, values in choice.settings.items()
        }
        for name in shared:
            key, _, setting = name.rpartition(".")
            # Where a setting is not active its value makes no difference, but must be the same one.
            full[name] = edits[key].plugin.settings.model_dump(mode="json")[setting]
        recipes.append({**point, **full})
    return list({point_key(recipe): recipe for recipe in recipes}.values())
