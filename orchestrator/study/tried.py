"""The trials of a study as plain values: what was tried, and what it came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.sweep.search import Goal

TriedState = Literal["running", "done", "pruned", "failed"]


@dataclass(frozen=True)
class Tried:
    """A trial of a study: one point of the space, and what became of it.

    `numbers` are the means over its seeds at its last step count. `is_feasible` says whether every
    bound holds. `reason` tells why it failed. A trial with `repeat_of` proposed a known point and
    cost nothing; it is no trial of the budget.
    """

    number: int
    state: TriedState
    point: Mapping[str, Any]
    values: tuple[float, ...]
    numbers: Mapping[str, float]
    is_feasible: bool
    reason: str | None
    repeat_of: int | None
    curve: Mapping[int, float]
    started_ms: int
    ended_ms: int


def counted(trials: Iterable[Tried]) -> list[Tried]:
    """The trials of the budget: those that tried something new."""
    return [trial for trial in trials if trial.repeat_of is None]


def in_order(trials: Iterable[Tried]) -> list[Tried]:
    """The trials of the budget that are over, by when they were: what is known only grows."""
    over = [trial for trial in counted(trials) if trial.state != "running"]
    return sorted(over, key=lambda trial: (trial.ended_ms, trial.number))


def candidates(trials: Iterable[Tried]) -> list[Tried]:
    """The trials that may be the worst case: run to their end, every bound kept."""
    return [t for t in counted(trials) if t.state == "done" and t.is_feasible]


def best(trials: Iterable[Tried], goals: Sequence[Goal], count: int) -> list[Tried]:
    """The best trials, the best first; of several goals the Pareto front, by its first goal."""
    found = candidates(trials)
    if len(goals) > 1:
        found = [t for t in found if not any(_dominates(o, t, goals) for o in found)]
    return sorted(found, key=lambda trial: -_signed(trial, goals)[0])[:count]


def best_so_far(trials: Iterable[Tried], goals: Sequence[Goal]) -> list[float | None]:
    """The first goal's best value after each trial of the budget; None before there is one."""
    curve: list[float | None] = []
    top: float | None = None
    sign = 1 if goals[0].maximize else -1
    for trial in counted(trials):
        if trial.state == "done" and trial.is_feasible:
            value = trial.values[0]
            top = value if top is None or sign * value > sign * top else top
        curve.append(top)
    return curve


def _signed(trial: Tried, goals: Sequence[Goal]) -> tuple[float, ...]:
    """Values of which more is sought."""
    return tuple(v if goal.maximize else -v for v, goal in zip(trial.values, goals, strict=True))


def _dominates(one: Tried, other: Tried, goals: Sequence[Goal]) -> bool:
    mine, its = _signed(one, goals), _signed(other, goals)
    return all(m >= i for m, i in zip(mine, its, strict=True)) and mine != its
