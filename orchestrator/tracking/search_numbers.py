"""A study's numbers as MLflow shows them: of the study, of a trial, of a confirmed setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from orchestrator.study.points import member_number
from orchestrator.study.tried import Tried, TriedState, best_so_far, in_order
from orchestrator.study.worst_case import Confirmed, WorstCase
from orchestrator.sweep.search import NUMBERS, Search
from orchestrator.sweep.space import Point
from orchestrator.tracking.run import MetricPoint, points_of

Name = TypeVar("Name", str, int)
DIGITS = 4
STATES: tuple[TriedState, ...] = ("done", "pruned", "failed")


def study_points(
    case: WorstCase, coverage: Sequence[float], shares: Mapping[str, float], end_ms: int
) -> Iterator[MetricPoint]:
    """The best so far and the coverage over the number of trials that are over; the rest as it is
    now, at step 0, which MLflow shows as bars.

    Args:
        coverage: after each of them.
        shares: the importance of each setting.
        end_ms: when the last setting was confirmed.
    """
    over = in_order(case.trials)
    best = best_so_far(over, case.goals)
    for count, (trial, value, share) in enumerate(zip(over, best, coverage, strict=True), 1):
        numbers = _shown({"best_so_far": value, "coverage": share})
        yield from points_of(numbers, count, trial.ended_ms)
    if not over:
        return
    now = {
        **{f"trials.{state}": float(case.count(state)) for state in STATES},
        "trials.infeasible": float(sum(t.state == "done" and not t.is_feasible for t in over)),
        **{f"importance.{name}": share for name, share in shares.items()},
    }
    yield from points_of(_shown(now), 0, over[-1].ended_ms)
    if case.worst is not None:
        goal, mean, setting = case.goals[0].name, case.worst.goal, case.worst.setting
        found = {
            "searched": case.worst.searched,
            goal: mean.value if mean else None,
            f"{goal}_low": mean.low if mean else None,
            f"{goal}_high": mean.high if mean else None,
            "control": setting.control,
            "unlearned": setting.unlearned,
            "retained": setting.retained,
        }
        yield from points_of(_shown({f"worst_case.{k}": v for k, v in found.items()}), 0, end_ms)


def trial_points(trial: Tried, steps: int, search: Search) -> Iterator[MetricPoint]:
    """The first goal over optimiser steps, the trial's own last; every other number at step 0."""
    goal = search.goals[0].name
    for at, value in _shown(trial.curve).items():
        yield MetricPoint(goal, value, at, trial.started_ms)
    found = {goal.name: v for goal, v in zip(search.goals, trial.values, strict=False)}
    numbers = _shown(_told({**trial.numbers, **found}, trial.point, search))
    last = numbers.pop(goal, None)
    if steps not in trial.curve:
        yield from points_of({goal: last}, steps, trial.ended_ms)
    yield from points_of(numbers, 0, trial.ended_ms)


def confirmed_points(one: Confirmed, search: Search, end_ms: int) -> Iterator[MetricPoint]:
    """Means over the fresh seeds, with intervals."""
    setting, goal, paired = one.setting, search.goals[0].name, one.setting.paired
    estimates = {
        goal: one.goal,
        "resurgence": paired.resurgence if paired else None,
        "recovery": paired.recovery if paired else None,
    }
    numbers: dict[str, float | None] = {**_told(one.numbers, one.tried.point, search)}
    for name, estimate in estimates.items():
        if estimate is not None:
            ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            numbers |= {name: estimate.value, **ends}
    beside = {"base": setting.base, "unlearned": setting.unlearned, "control": setting.control}
    numbers |= {**beside, "searched": one.searched, "seeds_scored": float(setting.seeds_scored)}
    yield from points_of(_shown(numbers), 0, end_ms)


def _told(numbers: Mapping[str, float], point: Point, search: Search) -> dict[str, float]:
    """Settings are parameters, and a metric's short name is one more of its numbers: both are
    left out unless they are sought.
    """
    sought = {wanted.name for wanted in search.goals}
    sought |= search.wanted.keys()
    of_members = member_number(search.goals[0].name, "")
    return {
        name: value
        for name, value in numbers.items()
        if name in sought
        or name.startswith(of_members)
        or (name not in point and ("." in name or name in NUMBERS))
    }


def _shown(numbers: Mapping[Name, float | None]) -> dict[Name, float]:
    """To be read: the store has every digit. MLflow has no infinity, and the interval of one seed
    no end.
    """
    return {
        name: float(f"{value:.{DIGITS}g}")
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    }
