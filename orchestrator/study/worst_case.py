"""What a search found: by study the settings that bring the most back, confirmed on fresh seeds.

A view of the studies and the store; nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from orchestrator.plan.plan import Plan
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.results.settings import Aggregate, aggregate
from orchestrator.stats.paired import Estimate
from orchestrator.store.store import Store
from orchestrator.study.points import RUINED, Points, numbers_of
from orchestrator.study.tried import Tried, best, candidates, counted
from orchestrator.sweep.search import Bound, Goal
from orchestrator.sweep.space import Point, Space

COVERAGE_RADIUS = 0.1
"""A point is covered if a tried one is as near as this share of every range, its choices equal."""


@dataclass(frozen=True)
class Confirmed:
    """One of the best settings on fresh seeds.

    `goal` is the first goal's mean with its 95% interval over seeds (and prompts, for resurgence
    and recovery); None until every fresh seed is there. `searched` is the search's own figure: the
    largest of many noisy ones, and so too large on average (the winner's curse).
    """

    tried: Tried
    searched: float
    goal: Estimate | None
    setting: Aggregate
    numbers: Mapping[str, float]
    is_feasible: bool


@dataclass(frozen=True)
class Missed:
    """Why settings may not be the worst case: a bound that some of them broke; None stands for
    unlearning that never worked, or that ruined the model. `nearest` is the broken bound's number
    that came nearest to it.
    """

    bound: Bound | None
    count: int
    nearest: float | None = None
    is_ruined: bool = False


@dataclass(frozen=True)
class WorstCase:
    """What one study found."""

    name: str
    fixed: Point
    space: Space
    goals: tuple[Goal, ...]
    budget: int
    trials: tuple[Tried, ...]
    confirmed: tuple[Confirmed, ...]
    bounds: tuple[Bound, ...] = ()

    @property
    def measured(self) -> list[Tried]:
        """The trials of the budget that ran to their end, whether they kept every bound or not."""
        return [trial for trial in counted(self.trials) if trial.state == "done"]

    @property
    def has_candidates(self) -> bool:
        """Whether any setting kept every bound in the search."""
        return bool(candidates(self.trials))

    @property
    def worst(self) -> Confirmed | None:
        """The setting with the largest confirmed mean among those that keep every bound."""
        sign = 1 if self.goals[0].maximize else -1
        found = [c for c in self.confirmed if c.is_feasible and c.goal is not None]
        return max(found, key=lambda c: sign * c.goal.value if c.goal else 0.0, default=None)

    @property
    def is_answered(self) -> bool:
        """Whether there is a worst case; of a search that confirms none (top: 0), a candidate."""
        return self.worst is not None or (self.has_candidates and not self.confirmed)

    @cached_property
    def coverage(self) -> float:
        """Share of the space's volume near a tried point."""
        tried = [t.point for t in counted(self.trials) if t.state in ("done", "pruned")]
        return self.space.coverage(tried, COVERAGE_RADIUS)

    def count(self, state: str) -> int:
        """How many trials of the budget are in a state: done, pruned, failed or running."""
        return sum(trial.state == state for trial in counted(self.trials))


def missed(bounds: Iterable[Bound], settings: Sequence[Tried | Confirmed]) -> Iterator[Missed]:
    """What keeps these settings from being the worst case, bound by bound."""
    explained: set[int] = set()
    for bound in bounds:
        broken = {
            index: one.numbers[bound.name]
            for index, one in enumerate(settings)
            if bound.name in one.numbers and bound.violation(one.numbers[bound.name]) > 0
        }
        explained |= broken.keys()
        if broken:
            yield Missed(bound, len(broken), min(broken.values(), key=bound.violation))
    ruined = {index for index, one in enumerate(settings) if one.numbers.get(RUINED)}
    if ruined:
        yield Missed(None, len(ruined), is_ruined=True)
    explained |= ruined
    others = [one for index, one in enumerate(settings) if index not in explained]
    if unlearned := sum(not one.is_feasible for one in others):
        yield Missed(None, unlearned)


def worst_cases(
    points: Points, found: Iterable[tuple[str, Point, Sequence[Tried]]], store: Store
) -> list[WorstCase]:
    """What every study found, as far as the store has it."""
    return [
        WorstCase(
            name=name,
            fixed=fixed,
            space=points.search.space.within(fixed),
            goals=points.search.goals,
            budget=points.search.settings.trials,
            trials=tuple(trials),
            confirmed=tuple(_confirmed(points, one, store) for one in confirmed(trials, points)),
            bounds=points.search.subject_to,
        )
        for name, fixed, trials in found
    ]


def confirmed(trials: Sequence[Tried], points: Points) -> list[Tried]:
    """The trials whose settings are run again on fresh seeds."""
    return best(trials, points.search.goals, points.search.confirm.top)


def _confirmed(points: Points, tried: Tried, store: Store) -> Confirmed:
    plan = points.confirming(tried.point)
    reader = TrialReader(plan, store)
    trials = [m for m in reader.all() if not m.planned.is_control]
    setting = next(s for s in aggregate(plan, store, reader).settings if not s.is_control)
    is_measured = all(m.status == "done" for m in trials)
    numbers = numbers_of(trials, tried.point, points.search) if is_measured else None
    goal = points.search.goals[0]
    return Confirmed(
        tried=tried,
        searched=tried.values[0],
        goal=_estimate(goal.name, setting, trials, tried.point, points) if is_measured else None,
        setting=setting,
        numbers=numbers.found if numbers else {},
        is_feasible=numbers is not None and all(v <= 0 for v in numbers.violations.values()),
    )


def _estimate(
    name: str, setting: Aggregate, trials: Sequence[Measured], point: Point, points: Points
) -> Estimate | None:
    """Resurgence and recovery as everywhere; any other number's mean over seeds, by Student's t."""
    if name in ("resurgence", "recovery"):
        paired = setting.paired
        return (getattr(paired, name) if paired else None) or None
    found = [numbers_of([m], point, points.search).found.get(name) for m in trials]
    values = np.array([value for value in found if value is not None])
    if not len(values):
        return None
    if len(values) == 1:
        return Estimate(float(values[0]), -math.inf, math.inf)  # one seed says nothing of others
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Estimate(mean, mean - half, mean + half)


def asked_plan(points: Points, found: Iterable[tuple[str, Point, Sequence[Tried]]]) -> Plan:
    """All that a search has asked for so far, as one plan: its trials and the confirmed ones."""
    plans = [points.nothing]
    for _, _, tried in found:
        for one in counted(tried):
            for steps in (*one.curve, *([None] if one.state == "done" else [])):
                plans.append(points.measuring(one.point, steps))
        plans += [points.confirming(one.point) for one in confirmed(tried, points)]
    return merged(plans)


def merged(plans: Sequence[Plan]) -> Plan:
    """Several plans of one sweep as one: every trial and stage once."""
    return Plan(
        name=plans[0].name,
        root=plans[0].root,
        trials=tuple({t.digest: t for plan in plans for t in plan.trials}.values()),
        stages=tuple(dict.fromkeys(s for plan in plans for s in plan.stages)),
        inputs=max((plan.inputs for plan in plans), key=len),  # a planner's only grow
    )
