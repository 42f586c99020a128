"""The studies of a sweep's search: opened, read, and what they have asked for."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store.store import Store
from orchestrator.study.defence import inner_points, open_outer
from orchestrator.study.points import PointPlanner, Points
from orchestrator.study.study import Study, read_tried
from orchestrator.study.tried import Tried, counted
from orchestrator.study.worst_case import confirmed, is_spent
from orchestrator.sweep.space import Point


def read_studies(points: Points, storage: str) -> list[tuple[str, Point, list[Tried]]]:
    """By study its name, what it holds fixed, and its trials. Nothing is written."""
    found: list[tuple[str, Point, list[Tried]]] = []
    for fixed in inner_points(points, storage):
        name = points.study_name(fixed)
        space = points.search.space.within(fixed)
        identity = points.identity(fixed)
        found.append((name, fixed, read_tried(storage, name, points.search, space, identity)))
    return found


def is_complete(
    points: Points, found: Sequence[tuple[str, Point, Sequence[Tried]]], store: Store
) -> bool:
    """Whether every budget is spent and every confirming stage has its record."""
    keys = store.keys()
    for _, fixed, trials in found:
        size = points.search.space.within(fixed).size
        budget = points.search.settings.trials
        asked = counted(trials)
        if any(tried.state == "running" for tried in asked):
            return False
        most = budget if size is None else min(budget, size)
        if len(asked) < most and not is_spent(points, trials, store):
            return False
        plans = (points.confirming(tried.point) for tried in confirmed(trials, points))
        if any(stage.key not in keys for plan in plans for stage in plan.stages):
            return False
    return True


def open_studies(points: PointPlanner, storage: str) -> list[tuple[Point, Study]]:
    """The search's studies, made if they are not there yet; with defences, the outer ones."""
    if points.search.defend is not None:
        return [(fixed, open_outer(points, storage, fixed)) for fixed in points.fixed]
    return [(fixed, open_study(points, storage, fixed)) for fixed in points.fixed]


def open_study(points: PointPlanner, storage: str, fixed: Point) -> Study:
    """The study that holds this fixed, made if it is not there yet."""
    search = points.search
    space, name = search.space.within(fixed), points.study_name(fixed)
    return Study(storage, name, search, space, points.ladder, points.identity(fixed))
