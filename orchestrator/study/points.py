"""A point of a search -> the stages that measure it, and their records -> its numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.plan.plan import Plan, PlannedTrial, Planner
from orchestrator.results.measure import Measured, Scores, TrialReader
from orchestrator.store.store import Store
from orchestrator.sweep.grid import point_grid
from orchestrator.sweep.search import REDUCTION, WORST, Bound, Goal, Search
from orchestrator.sweep.space import Point, Range
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Trial

FAILED, RUINED = "unlearning_failed", "model_ruined"
"""Numbers that a point has where unlearning took too little, or ruined the model: the share of its
seeds.
"""
_OF_CONCEPT = ("erased.", "_resurgence")
"""What stands around a concept in the name of its resurgence, as in results."""
NOT_IDENTITY = ("name", "search", "keep", "resources", "store", "mlflow")
"""Parts of a sweep on which no value of its search hangs."""


@dataclass(frozen=True)
class Numbers:
    """What a point came to: means over its seeds, and how far each bound is broken."""

    found: Mapping[str, float]
    violations: Mapping[str, float]
    missing: str | None = None


class Points(ABC):
    """What whoever reads a search asks about its points.

    Attributes:
        name: the sweep's.
        recorded: the sweep file as it is kept beside results.
        search: what is sought, where, and how.
        seeds: those that the search measures on.
        fixed: by study, what it holds fixed.
        nothing: a plan without trials.
    """

    name: str
    recorded: str
    search: Search
    seeds: tuple[int, ...]
    fixed: Sequence[Point]
    nothing: Plan

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Seeds that the search never sees."""
        first = max(self.seeds) + 1
        return tuple(range(first, first + self.search.confirm.seeds))

    def study_name(self, fixed: Point) -> str:
        """'worst_case/esd': the sweep's name, and what this study holds fixed."""
        return "/".join([self.name, *(str(value) for value in fixed.values())])

    @abstractmethod
    def identity(self, fixed: Point) -> Mapping[str, Any]:
        """JSON values of all that a study's values hang on: of `for_each` its own values only."""

    @abstractmethod
    def measuring(self, point: Point, steps: int | None = None) -> Plan:
        """A point on the search's seeds; at fewer steps than its own if told so.

        Raises:
            ResurgeError: the settings do not go together.
        """

    @abstractmethod
    def confirming(self, point: Point) -> Plan:
        """A point on the seeds that the search never saw, with its controls."""


class PointPlanner(Points):
    """Plans the points of one sweep's search. What they share is planned, and hashed, once."""

    def __init__(self, sweep: Sweep) -> None:
        assert sweep.search is not None  # the command refuses a sweep without one
        self.sweep = sweep
        self.name, self.recorded, self.seeds = sweep.name, sweep.recorded, sweep.seeds
        self.search = sweep.search
        self.fixed = sweep.search.studies(sweep.grid)
        self._planner = Planner(sweep)
        self.nothing = self._planner.plan((), False)

    @property
    def steps_name(self) -> str | None:
        """The setting along which a trajectory grows: the last edit's steps, if it fine-tunes."""
        last = self.sweep.edits[-1]
        return f"{last.key}.steps" if last.kind == "finetune" else None

    def trials(
        self, point: Point, steps: int | None = None, seeds: Sequence[int] | None = None
    ) -> tuple[Trial, ...]:
        """A point's trials, one a seed; at fewer steps than its own if told so.

        Raises:
            ResurgeError: the settings do not go together.
        """
        settings = dict(point)
        if steps is not None and self.steps_name is not None:
            settings[self.steps_name] = steps
        grid = point_grid(self.sweep.grid, settings)
        expansion = replace(grid, seeds=tuple(seeds or self.sweep.seeds)).expansion
        if expansion.problems:
            raise ResurgeError("; ".join(problem.what for problem in expansion.problems))
        return expansion.trials

    def plan(self, trials: Iterable[Trial], controls: bool = False) -> Plan:
        """The stages of these trials.

        Controls are left out while searching: no goal reads them. The confirmed points have them.
        """
        return self._planner.plan(trials, controls)

    def corners(self) -> Plan:
        """Points at the ends of the space, on one seed: what all points are like, none measured."""
        seeds = self.seeds[:1]
        points = self.search.corners(self.sweep.grid)
        return self.plan(trial for point in points for trial in self.trials(point, seeds=seeds))

    def measuring(self, point: Point, steps: int | None = None) -> Plan:
        return self.plan(self.trials(point, steps))

    def rungs(self, point: Point) -> tuple[int, ...]:
        """The step counts at which a point is measured on its way, its own last.

        Only its own where nothing is pruned, and where fewer steps are no beginning of more.
        """
        trial = self.trials(point)[0]
        recipe = trial.edits[-1].plugin.settings
        if self.steps_name is None:
            return (0,)
        steps = int(recipe.steps)
        if recipe.schedule != "constant":
            return (steps,)
        return (*(rung for rung in self.ladder if rung < steps), steps)

    @cached_property
    def ladder(self) -> tuple[int, ...]:
        """The step counts at which any point may be stopped, fewest first.

        The most of the space, about a third of it, a third of that, ….
        """
        dimensions = {dimension.name: dimension for dimension in self.search.space.dimensions}
        dimension = dimensions.get(self.steps_name or "")
        if self.search.settings.pruner == "none" or dimension is None:
            return ()
        counts = [int(dimension.at(index)) for index in range(dimension.size or 0)]
        counts = [count for count in counts if count > 0]
        found, wanted = set(), float(max(counts, default=0))
        while counts and wanted >= min(counts):
            found.add(min(counts, key=lambda count: abs(count - wanted)))
            wanted /= REDUCTION
        return tuple(sorted(found))

    def identity(self, fixed: Point) -> dict[str, Any]:
        whole = replace(self.sweep, grid=point_grid(self.sweep.grid, fixed)).canonical()
        kept = {name: value for name, value in whole.items() if name not in NOT_IDENTITY}
        bounds = {bound.name: str(bound) for bound in self.search.subject_to}
        found: dict[str, Any] = {"sweep": kept, "subject_to": bounds, "fixed": dict(fixed)}
        if (aggregate := self.search.aggregate) is not None:
            found["aggregate"] = [aggregate.how, *aggregate.axes]
        return found

    def confirming(self, point: Point) -> Plan:
        trials = self.trials(point, seeds=self.fresh_seeds)
        return self.plan(trials, self.sweep.evaluate.controls)

    def numbers(self, plan: Plan, store: Store, point: Point) -> Numbers:
        """A measured point's numbers.

        Raises:
            ResurgeError: a goal or a bound names what no metric gives.
        """
        trials = [m for m in TrialReader(plan, store).all() if not m.planned.is_control]
        return numbers_of(trials, point, self.search)


def numbers_of(trials: Sequence[Measured], point: Point, search: Search) -> Numbers:
    """What trials of one point, all measured, come to.

    Raises:
        ResurgeError: a goal or a bound names what no metric gives.
    """
    if search.aggregate is None:
        return _numbers(trials, point, search)
    groups = members(trials, search.aggregate.axes)
    each = {name: _numbers(group, point, search) for name, group in groups.items()}
    made = _mean_of(each, search) if search.aggregate.how == "mean" else _largest_of(each, search)
    if not (search.levels or search.defend):
        return made
    states = {
        member_number(state, name): numbers.violations[state]
        for name, numbers in each.items()
        for state in (FAILED, RUINED)
    }
    return replace(made, found={**made.found, **states})


def members(trials: Iterable[Measured], axes: Sequence[str]) -> dict[str, list[Measured]]:
    """The trials by their values of the aggregated axes: 'star', or 'esd/star'."""
    found: dict[str, list[Measured]] = {}
    for measured in trials:
        found.setdefault(member_of(measured.planned, axes), []).append(measured)
    return found


def member_of(planned: PlannedTrial, axes: Sequence[str]) -> str:
    """What a trial is called among those that are aggregated."""
    return "/".join(str(planned.trial.params[axis]) for axis in axes)


def member_number(name: str, member: str) -> str:
    """What a number of one of the aggregated values is called: "resurgence of star"."""
    return f"{name} of {member}"


def by_member(numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The numbers of each aggregated value, where they are kept (`Search.of_members`)."""
    begin = member_number(FAILED, "")
    members = [name.removeprefix(begin) for name in numbers if name.startswith(begin)]
    ends = {member: member_number("", member) for member in members}
    return {
        member: {n.removesuffix(end): value for n, value in numbers.items() if n.endswith(end)}
        for member, end in ends.items()
    }


def concept_number(concept: str) -> str:
    """What the resurgence of one concept of a set is called: "erased.star_resurgence"."""
    return concept.join(_OF_CONCEPT)


def concept_numbers(numbers: Mapping[str, float]) -> dict[str, float]:
    """The resurgence of each concept of a set that is erased together, by concept."""
    return {
        name.removeprefix(_OF_CONCEPT[0]).removesuffix(_OF_CONCEPT[1]): value
        for name, value in numbers.items()
        if name.startswith(_OF_CONCEPT[0]) and name.endswith(_OF_CONCEPT[1])
    }


def _largest_of(each: Mapping[str, Numbers], search: Search) -> Numbers:
    """The numbers of the worst among those that keep every bound; if none does, of the one that is
    nearest to it.
    """
    goal = search.goals[0]
    told = {name: numbers for name, numbers in each.items() if numbers.missing is None}
    if not told:
        return next(iter(each.values()))
    kept = {name: n for name, n in told.items() if all(v <= 0 for v in n.violations.values())}
    sign = 1 if goal.maximize else -1
    if kept:
        worst = max(kept.values(), key=lambda numbers: sign * numbers.found[goal.name])
    else:
        worst = min(told.values(), key=lambda n: sum(max(0.0, v) for v in n.violations.values()))
    # The goal only of those that keep the bounds: by it they are known to.
    by_name = {
        member_number(name, member): numbers.found[name]
        for member, numbers in told.items()
        for name in (*search.of_members, *_concepts_in(numbers, goal))
        if name in numbers.found and (member in kept or name != goal.name)
    }
    return replace(worst, found={**worst.found, **by_name})


def _concepts_in(numbers: Numbers, goal: Goal) -> list[str]:
    if goal.name != WORST:
        return []
    return [concept_number(concept) for concept in concept_numbers(numbers.found)]


def _mean_of(each: Mapping[str, Numbers], search: Search) -> Numbers:
    """The means over all; a bound that one of them breaks is broken."""
    if lacking := next((n for n in each.values() if n.missing is not None), None):
        return lacking
    founds = [numbers.found for numbers in each.values()]
    shared = [name for name in founds[0] if all(name in found for found in founds)]
    means = {name: sum(found[name] for found in founds) / len(founds) for name in shared}
    first, *others = (numbers.violations for numbers in each.values())
    violations = {name: max(v, *(o[name] for o in others)) if others else v
                  for name, v in first.items()}  # fmt: skip
    by_name = {
        member_number(name, member): numbers.found[name]
        for member, numbers in each.items()
        for name in search.of_members
    }
    return Numbers({**means, **by_name}, violations)


def _numbers(trials: Sequence[Measured], point: Point, search: Search) -> Numbers:
    ranges = {d.name for d in search.space.dimensions if isinstance(d, Range)}
    settings = {name: float(value) for name, value in point.items() if name in ranges}
    earlier = _earlier(trials)
    wanted = {name: earlier[name] for name in search.wanted if name in earlier}
    # "finetune.steps" can be a goal, say.
    every = {**settings, **_means(trials), **_of_concepts(trials), **wanted}
    found = {name: value for name, value in every.items() if math.isfinite(value)}
    violations = {
        FAILED: sum(bool(m.unlearning_failed) for m in trials) / len(trials),
        RUINED: sum(bool(m.model_ruined) for m in trials) / len(trials),
    }
    found |= {name: share for name, share in violations.items() if share}
    for bound in search.subject_to:
        if bound.is_told(found):
            violations[f"{bound.name} {bound}"] = bound.violation(found)
    lacking = next((name for name in search.wanted if name not in found), None)
    if lacking is None:
        outer = search.defend.subject_to if search.defend else ()
        return Numbers(found, violations, _no_share((*search.subject_to, *outer), found))
    if lacking in every:
        return Numbers(found, violations, f"{lacking} is {every[lacking]}")
    if lacking == "recovery":
        missing = "recovery is undefined: unlearning took next to nothing away"
        return Numbers(found, violations, missing)
    known = list({**every, **earlier})
    raise ResurgeError(f"no number of a trial is called {lacking!r}{suggest(lacking, known)}")


def _no_share(bounds: Iterable[Bound], found: Mapping[str, float]) -> str | None:
    """Why a bound says nothing: of what is not above 0 there is no share to keep."""
    for bound in bounds:
        if bound.reference is not None and found[bound.reference] <= 0:
            value = found[bound.reference]
            return f"{bound.name} {bound}: {bound.reference} is {value:g}, and has no share"
    return None


def _means(trials: Sequence[Measured]) -> dict[str, float]:
    """Means over the trials of every number of the final model that each of them has."""
    rows = []
    for measured in trials:
        paired, base, last = measured.paired, measured.base.retained, measured.final.retained
        own = {
            "resurgence": paired.resurgence.value if paired else None,
            "recovery": paired.recovery.value if paired and paired.recovery else None,
            "unlearned_accuracy": measured.unlearned.erased,
            "retained_drop": None if base is None or last is None else base - last,
        }
        rows.append({**own, **_of_model(measured, "final", measured.final, measured.metrics)})
    return _averaged(rows)


def _of_concepts(trials: Sequence[Measured]) -> dict[str, float]:
    """The mean resurgence of each concept of a set, and the largest of them."""
    if not all(measured.paired for measured in trials):
        return {}
    by_concept: dict[str, list[float]] = {}
    for measured in trials:
        for one in measured.groups:
            if one.group.role == "erased" and one.group.concept is not None:
                name = concept_number(one.group.concept)
                by_concept.setdefault(name, []).append(one.paired.resurgence.value)
    means = {name: sum(found) / len(found) for name, found in by_concept.items()}
    own = [m.paired.resurgence.value for m in trials if m.paired]
    return {**means, WORST: max(means.values(), default=sum(own) / len(own))}


def _earlier(trials: Sequence[Measured]) -> dict[str, float]:
    """The same of the base and of the unlearned model: "base.retained", "unlearned.fid"."""
    base = _averaged([_of_model(m, "base", m.base, m.base_metrics) for m in trials])
    unlearned = _averaged(
        [_of_model(m, "unlearned", m.unlearned, m.unlearned_metrics) for m in trials]
    )
    return {
        **{f"base.{name}": value for name, value in base.items()},
        **{f"unlearned.{name}": value for name, value in unlearned.items()},
    }


def _of_model(
    measured: Measured,
    which: Literal["base", "unlearned", "final"],
    scores: Scores,
    metrics: Mapping[str, float],
) -> dict[str, float | None]:
    """What one model of a trial has: the primary metric's means by role, and its other numbers."""
    groups: dict[str, float] = {g.group.name: getattr(g, which) for g in measured.groups}
    roles = {**groups, **asdict(scores)}
    primary = measured.planned.final.primary
    return {
        **roles,
        "erased_accuracy": scores.erased,
        "retained_accuracy": scores.retained,
        **({f"{primary.plugin}.{role}": value for role, value in roles.items()} if primary else {}),
        **metrics,
    }


def _averaged(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Means of every number that each row has; a metric's own name is its mean over the erased
    concept, or its first number.
    """
    names = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    means = {name: sum(row[name] or 0.0 for row in rows) / len(rows) for name in names}
    short = {}
    for name, value in means.items():
        metric, dot, last = name.partition(".")
        if dot and (metric not in short or last == "erased"):
            short[metric] = value
    return {**short, **means}
