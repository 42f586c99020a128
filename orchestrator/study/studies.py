"""The studies of a sweep's search: opened, read, and what they have asked for."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store.store import Store
from orchestrator.study.points import PointPlanner
from orchestrator.study.study import Study, read_tried
from orchestrator.study.tried import Tried, counted
from orchestrator.study.worst_case import confirmed
from orchestrator.sweep.space import Point
from orchestrator.sweep.sweep import Sweep


def read_studies(points: PointPlanner, storage: str) -> list[tuple[str, Point, list[Tried]]]:
    """By study its name, what it holds fixed, and its trials. Nothing is written."""
    found: list[tuple[str, Point, list[Tried]]] = []
    for fixed in points.search.studies(points.sweep.grid):
        name = study_name(points.sweep, fixed)
        space = points.search.space.within(fixed)
        identity = points.identity(fixed)
        found.append((name, fixed, read_tried(storage, name, points.search, space, identity)))
    return found


def is_complete(
    points: PointPlanner, found: Sequence[tuple[str, Point, Sequence[Tried]]], store: Store
) -> bool:
    """Whether every budget is spent and every confirming stage has its record."""
    keys = store.keys()
    for _, fixed, trials in found:
        size = points.search.space.within(fixed).size
        budget = points.search.settings.trials
        asked = counted(trials)
        if any(tried.state == "running" for tried in asked):
            return False
        if len(asked) < (budget if size is None else min(budget, size)):
            return False
        plans = (points.confirming(tried.point) for tried in confirmed(trials, points))
        if any(stage.key not in keys for plan in plans for stage in plan.stages):
            return False
    return True


def study_name(sweep: Sweep, fixed: Point) -> str:
    """'worst_case/esd': the sweep's name, and what this study holds fixed."""
    return "/".join([sweep.name, *(str(value) for value in fixed.values())])


def open_studies(points: PointPlanner, storage: str) -> list[tuple[Point, Study]]:
    """The search's studies, made if they are not there yet."""
    sweep, search = points.sweep, points.search
    return [
        (
            fixed,
            Study(
                storage,
                study_name(sweep, fixed),
                search,
                search.space.within(fixed),
                points.ladder,
                points.identity(fixed),
            ),
        )
        for fixed in search.studies(sweep.grid)
    ]
