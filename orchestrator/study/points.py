"""A point of a search -> the stages that measure it, and their records -> its numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.plan.plan import Plan, Planner
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.store.store import Store
from orchestrator.sweep.grid import point_grid
from orchestrator.sweep.search import REDUCTION, Search
from orchestrator.sweep.space import Point, Range
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Trial

RUINED = "model_ruined"
"""The number that a point has where unlearning ruined the model: the share of its seeds."""
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
        return {"sweep": kept, "subject_to": bounds, "fixed": dict(fixed)}

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
    ranges = {d.name for d in search.space.dimensions if isinstance(d, Range)}
    settings = {name: float(value) for name, value in point.items() if name in ranges}
    every = {**settings, **_means(trials)}  # "finetune.steps" can be a goal, say
    found = {name: value for name, value in every.items() if math.isfinite(value)}
    violations = {
        "unlearning_failed": sum(bool(m.unlearning_failed) for m in trials) / len(trials),
        RUINED: sum(bool(m.model_ruined) for m in trials) / len(trials),
    }
    if violations[RUINED]:
        found[RUINED] = violations[RUINED]
    for bound in search.subject_to:
        if bound.name in found:
            violations[f"{bound.name} {bound}"] = bound.violation(found[bound.name])
    wanted = [*(bound.name for bound in search.subject_to), *(goal.name for goal in search.goals)]
    lacking = next((name for name in wanted if name not in found), None)
    if lacking is None:
        return Numbers(found, violations)
    if lacking in every:
        return Numbers(found, violations, f"{lacking} is {every[lacking]}")
    if lacking == "recovery":
        missing = "recovery is undefined: unlearning took next to nothing away"
        return Numbers(found, violations, missing)
    raise ResurgeError(f"no number of a trial is called {lacking!r}{suggest(lacking, list(every))}")


def _means(trials: Sequence[Measured]) -> dict[str, float]:
    """Means over the trials of every number that each of them has."""
    rows: list[dict[str, float | None]] = []
    for measured in trials:
        paired, score = measured.paired, measured.planned.final.primary
        roles = asdict(measured.final).items() if score else ()
        rows.append(
            {
                "resurgence": paired.resurgence.value if paired else None,
                "recovery": paired.recovery.value if paired and paired.recovery else None,
                "erased_accuracy": measured.final.erased,
                "retained_accuracy": measured.final.retained,
                "unlearned_accuracy": measured.unlearned.erased,
                **{f"{score.plugin}.{role}": value for role, value in roles if score},
                **measured.metrics,
            }
        )
    names = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    means = {name: sum(row[name] or 0.0 for row in rows) / len(rows) for name in names}
    short = {}
    for name, value in means.items():
        metric, dot, last = name.partition(".")
        if dot and (metric not in short or last == "erased"):
            short[metric] = value
    return {**short, **means}
