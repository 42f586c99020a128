"""What a search found: by study the settings that bring the most back, confirmed on fresh seeds.

A view of the studies and the store; nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats

from orchestrator.plan.plan import Plan
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.results.settings import Aggregate, aggregate, aggregate_by
from orchestrator.stats.paired import Estimate
from orchestrator.store.store import Store
from orchestrator.study.budget import spending
from orchestrator.study.points import (
    FAILED,
    RUINED,
    Points,
    by_member,
    concept_number,
    concept_numbers,
    member_number,
    member_of,
    numbers_of,
)
from orchestrator.study.tried import Tried, best, candidates, counted
from orchestrator.sweep.search import WORST, Bound, Defend, Goal, Search
from orchestrator.sweep.space import Point, Space

COVERAGE_RADIUS = 0.1
"""A point is covered if a tried one is as near as this share of every range, its choices equal."""


@dataclass(frozen=True)
class Confirmed:
    """One of the best settings on fresh seeds.

    `goal` is the first goal's mean with its 95% interval over seeds (and prompts, for resurgence
    and recovery); None until every fresh seed is there. `searched` is the search's own figure: the
    largest of many noisy ones, and so too large on average (the winner's curse). `member` is the
    value of the aggregated axes that the search found to be the worst, if it took the largest;
    `concept` the concept of a set that it found to come back the most, if it sought that.
    """

    tried: Tried
    searched: float
    goal: Estimate | None
    setting: Aggregate
    numbers: Mapping[str, float]
    is_feasible: bool
    member: str = ""
    concept: str = ""


@dataclass(frozen=True)
class Missed:
    """Why settings may not be the worst case: a bound that some of them broke; None stands for
    unlearning that never worked, or that ruined the model. `nearest` is the broken bound's number
    that came nearest to it, `gap` how far from it that was.
    """

    bound: Bound | None
    count: int
    nearest: float | None = None
    gap: float = 0.0
    is_ruined: bool = False


@dataclass(frozen=True)
class WorstCase:
    """What one study found under one set of bounds; `level` says which, if there are several.

    `is_spent` says that a budget in steps or hours is spent, whatever number of trials is left.
    """

    name: str
    fixed: Point
    space: Space
    goals: tuple[Goal, ...]
    budget: int
    trials: tuple[Tried, ...]
    confirmed: tuple[Confirmed, ...]
    bounds: tuple[Bound, ...] = ()
    level: str = ""
    is_spent: bool = False

    @property
    def title(self) -> str:
        """The study, and the bounds if there are several sets of them."""
        return f"{self.name} · {self.level}" if self.level else self.name

    @property
    def to_come(self) -> int:
        """How many trials are left of the budget."""
        size = self.space.size
        budget = self.budget if size is None else min(self.budget, size)
        over = sum(trial.state != "running" for trial in counted(self.trials))
        return 0 if self.is_spent else max(0, budget - over)

    @property
    def measured(self) -> list[Tried]:
        """The trials of the budget that ran to their end, whether they kept every bound or not."""
        return [trial for trial in counted(self.trials) if trial.state == "done"]

    @property
    def has_candidates(self) -> bool:
        """Whether any setting kept every bound in the search."""
        return bool(candidates(keeping(self.trials, self.bounds)))

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
            index: one.numbers
            for index, one in enumerate(settings)
            if bound.is_told(one.numbers) and bound.violation(one.numbers) > 0
        }
        explained |= broken.keys()
        if broken:
            nearest = min(broken.values(), key=bound.violation)
            gap = bound.violation(nearest)
            yield Missed(bound, len(broken), nearest[bound.name], gap)
    ruined = {index for index, one in enumerate(settings) if one.numbers.get(RUINED)}
    if ruined:
        yield Missed(None, len(ruined), is_ruined=True)
    explained |= ruined
    others = [one for index, one in enumerate(settings) if index not in explained]
    if unlearned := sum(not one.is_feasible for one in others):
        yield Missed(None, unlearned)


def keeps(bounds: Iterable[Bound], numbers: Mapping[str, float]) -> bool:
    """Whether every bound is known to hold."""
    return all(bound.is_told(numbers) and bound.violation(numbers) <= 0 for bound in bounds)


def keeping(trials: Iterable[Tried], bounds: Sequence[Bound]) -> list[Tried]:
    """The trials that keep these bounds."""
    return [trial for trial in trials if keeps(bounds, trial.numbers)]


def seen(trials: Iterable[Tried], search: Search, bounds: Sequence[Bound]) -> list[Tried]:
    """The trials as one of several sets of bounds sees them: of aggregated values, the largest is
    that of those which keep these bounds, and a mean keeps what each of them keeps.
    """
    return [_seen(one, search, bounds) if one.state == "done" else one for one in trials]


def _seen(tried: Tried, search: Search, bounds: Sequence[Bound]) -> Tried:
    members, goal = by_member(tried.numbers), search.goals[0]
    if search.aggregate is None or not search.levels or not members:
        return tried
    if search.aggregate.how == "mean":
        return replace(tried, numbers=_strictest(tried.numbers, bounds))
    told = {name: numbers for name, numbers in members.items() if goal.name in numbers}
    kept = {name: numbers for name, numbers in told.items() if keeps(bounds, numbers)}
    if not told:
        return tried
    sign = 1 if goal.maximize else -1
    if kept:
        worst = max(kept.values(), key=lambda numbers: sign * numbers[goal.name])
    else:
        worst = min(told.values(), key=lambda n: sum(max(0.0, b.violation(n)) for b in bounds))
    broken = {member_number(goal.name, name) for name in told if name not in kept}
    of_others = set(map(concept_number, concept_numbers(tried.numbers)))
    left = {n: v for n, v in tried.numbers.items() if n not in broken and n not in of_others}
    return replace(tried, values=(worst[goal.name],), numbers={**left, **worst})


def _strictest(numbers: Mapping[str, float], bounds: Sequence[Bound]) -> dict[str, float]:
    """The numbers with those of the value that keeps each bound the least in place of the means."""
    found = dict(numbers)
    for bound in bounds:
        told = [of for of in by_member(numbers).values() if bound.is_told(of)]
        if told:
            least = max(told, key=bound.violation)
            names = (bound.name, *([bound.reference] if bound.reference else ()))
            found |= {name: least[name] for name in names}
    return found


def worst_cases(
    points: Points, found: Iterable[tuple[str, Point, Sequence[Tried]]], store: Store
) -> list[WorstCase]:
    """What every study found under each set of bounds, as far as the store has it."""
    search = points.search
    return [
        WorstCase(
            name=name,
            fixed=fixed,
            space=search.space.within(fixed),
            goals=search.goals,
            budget=search.settings.trials,
            trials=tuple(seen(trials, search, bounds)),
            confirmed=tuple(
                _confirmed(points, one, store, bounds) for one in _best(trials, points, bounds)
            ),
            bounds=bounds,
            level=_level(search, bounds),
            is_spent=is_spent(points, trials, store),
        )
        for name, fixed, trials in found
        for bounds in search.bounds
    ]


def is_spent(points: Points, trials: Sequence[Tried], store: Store) -> bool:
    """Whether no new trial is to begin, however many are left of the budget."""
    return breaks_defence(points.search, trials) or spending(points, trials, store).is_over


def _level(search: Search, bounds: Sequence[Bound]) -> str:
    """'retained >= 90% of base': in what these bounds differ from the other sets."""
    differing = (b for b in bounds if any(b not in other for other in search.bounds))
    return ", ".join(f"{bound.name} {bound}" for bound in differing)


def _best(trials: Sequence[Tried], points: Points, bounds: Sequence[Bound]) -> list[Tried]:
    if breaks_defence(points.search, trials):
        return []
    told = seen(trials, points.search, bounds)
    return best(keeping(told, bounds), points.search.goals, points.search.confirm.top)


def breaks_defence(search: Search, trials: Iterable[Tried]) -> bool:
    """Whether what is tried as a defence is none, so that its worst case need not be known."""
    if search.defend is None:
        return False
    return any(is_no_defence(search.defend, t.numbers) for t in counted(trials) if t.numbers)


def is_no_defence(defend: Defend, numbers: Mapping[str, float]) -> bool:
    """Whether the unlearning failed, or ruined the model, or breaks a bound of its own; of several
    aggregated values, on any of them.
    """
    return any(
        of.get(FAILED) or of.get(RUINED) or not keeps(defend.subject_to, of)
        for of in by_member(numbers).values() or (numbers,)
    )


def confirmed(trials: Sequence[Tried], points: Points) -> list[Tried]:
    """The trials whose settings are run again on fresh seeds: the best under each set of bounds."""
    found = {t.number: t for bounds in points.search.bounds for t in _best(trials, points, bounds)}
    return list(found.values())


def _confirmed(points: Points, tried: Tried, store: Store, bounds: Sequence[Bound]) -> Confirmed:
    plan, search = points.confirming(tried.point), points.search
    member = worst_member(tried, search)
    if member and search.aggregate:
        plan = _of_member(plan, search.aggregate.axes, member)
    reader = TrialReader(plan, store)
    trials = [m for m in reader.all() if not m.planned.is_control]
    setting = _setting(plan, store, reader, search)
    is_measured = all(m.status == "done" for m in trials)
    numbers = numbers_of(trials, tried.point, search) if is_measured else None
    told = dict(numbers.found) if numbers else {}
    if numbers and search.levels and search.aggregate and search.aggregate.how == "mean":
        told = _strictest(told, bounds)
    goal = search.goals[0]
    return Confirmed(
        tried=tried,
        searched=tried.values[0],
        goal=_estimate(goal.name, setting, trials, tried, points) if is_measured else None,
        setting=setting,
        numbers=told,
        is_feasible=numbers is not None
        and all(v <= 0 for v in numbers.violations.values())
        and keeps(bounds, told),
        member=member,
        concept=worst_concept(tried) if goal.name == WORST else "",
    )


def worst_concept(tried: Tried) -> str:
    """The concept of a set that came back the most on the search's own seeds; '' of one alone."""
    found = concept_numbers(tried.numbers)
    return max(found, key=lambda concept: found[concept], default="")


def worst_member(tried: Tried, search: Search) -> str:
    """The value of the aggregated axes that a trial's largest value is of; else ''.

    Known from the search's own seeds: on the fresh ones nothing is chosen.
    """
    goal = search.goals[0]
    if search.aggregate is None or search.aggregate.how != "max":
        return ""
    prefix, sign = member_number(goal.name, ""), 1 if goal.maximize else -1
    values = {n.removeprefix(prefix): v for n, v in tried.numbers.items() if n.startswith(prefix)}
    return max(values, key=lambda name: sign * values[name], default="")


def _of_member(plan: Plan, axes: Sequence[str], member: str) -> Plan:
    """The part of a plan that measures one value of the aggregated axes, with its controls."""
    own = [t for t in plan.trials if not t.is_control and member_of(t, axes) == member]
    controls = {t.control for t in own}
    concepts = {t.trial.concept for t in own}
    own += [
        t
        for t in plan.trials
        if t.is_control and t.final.model.digest in controls and t.trial.concept in concepts
    ]
    stages = dict.fromkeys(stage for trial in own for stage in trial.stages())
    return Plan(plan.name, plan.root, tuple(own), tuple(stages), plan.inputs)


def _setting(plan: Plan, store: Store, reader: TrialReader, search: Search) -> Aggregate:
    """The point's numbers over its seeds; with a mean, over the aggregated values too."""
    if search.aggregate is not None and search.aggregate.how == "mean":
        pooled = aggregate_by(plan, store, ()).settings
        if pooled:
            return pooled[0]
    return next(s for s in aggregate(plan, store, reader).settings if not s.is_control)


def _estimate(
    name: str, setting: Aggregate, trials: Sequence[Measured], tried: Tried, points: Points
) -> Estimate | None:
    """Resurgence and recovery as everywhere, of the worst concept those of the one that was the
    worst in the search; any other number's mean over seeds, by Student's t.
    """
    if name == WORST and (concept := worst_concept(tried)):
        of = (g.paired.resurgence for g in setting.groups if g.group.concept == concept)
        return next(of, None)
    if name == WORST:
        name = "resurgence"
    if name in ("resurgence", "recovery"):
        paired = setting.paired
        return (getattr(paired, name) if paired else None) or None
    by_seed: dict[int, list[Measured]] = {}
    for measured in trials:
        by_seed.setdefault(measured.planned.trial.seed, []).append(measured)
    search = points.search
    found = [numbers_of(one, tried.point, search).found.get(name) for one in by_seed.values()]
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
