"""Min-max: an outer study of an unlearner's settings, around the worst case of each.

Every point of the outer study has an inner one, which holds it fixed. The outer study is told the
inner worst case as it was searched; what is reported of a defence is confirmed like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.study.points import FAILED, RUINED, Numbers, Points, by_member
from orchestrator.study.study import Study, read_tried
from orchestrator.study.tried import Tried, best, counted
from orchestrator.study.worst_case import WorstCase, breaks_defence, keeping
from orchestrator.sweep.search import Search
from orchestrator.sweep.space import Point

NO_WORST_CASE = "no setting kept every bound"


def outer_name(points: Points, fixed: Point) -> str:
    """'worst_case/esd defences'."""
    return f"{points.study_name(fixed)} defences"


def outer_identity(points: Points, fixed: Point) -> dict[str, Any]:
    """What the defences' values hang on: the inner search, too."""
    search = points.search
    assert search.defend is not None
    inner = {"space": search.space.within(fixed).described(), "trials": search.settings.trials}
    bounds = {bound.name: str(bound) for bound in search.defend.subject_to}
    return {**points.identity(fixed), "inner": inner, "defend": bounds}


def open_outer(points: Points, storage: str, fixed: Point) -> Study:
    """The study of defences, made if it is not there yet."""
    outer = points.search.outer
    space, identity = outer.space.within(fixed), outer_identity(points, fixed)
    return Study(storage, outer_name(points, fixed), outer, space, identity=identity)


def read_outer(points: Points, storage: str, fixed: Point) -> list[Tried]:
    """The defences that were tried so far; nothing is written."""
    outer = points.search.outer
    space, identity = outer.space.within(fixed), outer_identity(points, fixed)
    return read_tried(storage, outer_name(points, fixed), outer, space, identity)


def are_all_tried(points: Points, storage: str) -> bool:
    """Whether every outer budget is spent."""
    for fixed in points.fixed:
        tried = counted(read_outer(points, storage, fixed))
        size, budget = points.search.outer.space.within(fixed).size, points.search.outer.settings
        most = budget.trials if size is None else min(size, budget.trials)
        if len(tried) < most or any(one.state == "running" for one in tried):
            return False
    return True


def inner_points(points: Points, storage: str) -> list[Point]:
    """What every study of a search holds fixed: `for_each`, and the defence that it tries."""
    if points.search.defend is None:
        return list(points.fixed)
    return [
        tried.point
        for fixed in points.fixed
        for tried in counted(read_outer(points, storage, fixed))
        if tried.state in ("running", "done")
    ]


def judged(search: Search, trials: Sequence[Tried]) -> tuple[float, Numbers] | None:
    """A defence's value and numbers, out of its inner trials; None if it has none.

    The value is the worst case that was found. Where nothing kept every bound it is the worst that
    was measured at all, and the defence is no candidate.
    """
    assert search.defend is not None
    done = [trial for trial in counted(trials) if trial.state == "done"]
    if not done:
        return None
    goal = search.goals[0]
    kept = best(keeping(done, search.subject_to), search.goals, 1)
    sign = 1 if goal.maximize else -1
    worst = kept[0] if kept else max(done, key=lambda trial: sign * trial.values[0])
    # Of several aggregated values a defence must hold on each.
    each = [*by_member(worst.numbers).values()] or [dict(worst.numbers)]
    violations = {
        f"{bound.name} {bound}": max(
            bound.violation(numbers) if bound.is_told(numbers) else 1.0 for numbers in each
        )
        for bound in search.defend.subject_to
    }
    violations[NO_WORST_CASE] = 0.0 if kept else 1.0
    for name in (FAILED, RUINED):
        violations[name] = max(numbers.get(name, 0.0) for numbers in each)
    return worst.values[0], Numbers(worst.numbers, violations)


def best_defences(search: Search, cases: Iterable[WorstCase]) -> list[WorstCase]:
    """Of each value of `for_each` the defence with the least worst case, as confirmed; of a search
    that confirms none, as searched.
    """
    sign = 1 if search.goals[0].maximize else -1
    found: dict[str, tuple[float, WorstCase]] = {}
    for case in cases:
        value = value_of(case)
        if value is None or breaks_defence(search, case.trials):
            continue
        group = group_of(search, case.fixed)
        if group not in found or sign * value < sign * found[group][0]:
            found[group] = (value, case)
    return [case for _, case in found.values()]


def value_of(case: WorstCase) -> float | None:
    """The worst case's value; None while there is none."""
    if case.worst is not None and case.worst.goal is not None:
        return case.worst.goal.value
    if case.confirmed:
        return None
    top = best(keeping(case.trials, case.bounds), case.goals, 1)
    return top[0].values[0] if top else None


def group_of(search: Search, fixed: Mapping[str, Any]) -> str:
    """'esd': what `for_each` holds fixed of a defence."""
    return "/".join(str(fixed[name]) for name in search.for_each)
