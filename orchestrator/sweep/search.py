"""What a sweep's `search` block says: what is sought, where, how long, and how it is confirmed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from orchestrator.core.artifacts import Role
from orchestrator.core.settings import Settings
from orchestrator.sweep.grid import Grid
from orchestrator.sweep.space import Space

Sampler = Literal["tpe", "gp", "cmaes", "random", "grid", "nsga2"]
Pruner = Literal["none", "median", "hyperband"]
AggregateHow = Literal["max", "mean"]
FOR_SEVERAL_GOALS: tuple[Sampler, ...] = ("tpe", "gp", "random", "grid", "nsga2")
Model = Literal["base", "unlearned"]
EARLIER: tuple[Model, ...] = get_args(Model)
"""Models that a trial's final one is compared with: "base.retained" is a number of the base's."""
NUMBERS = (
    "resurgence",
    "recovery",
    "erased_accuracy",
    "retained_accuracy",
    "unlearned_accuracy",
    "retained_drop",
    "worst_resurgence",
)
"""What a trial has whatever metrics the sweep names: of the primary metric's means."""
WORST = "worst_resurgence"
"""The resurgence of the one concept of a set that comes back the most; of one concept its own."""
MEANS = (*get_args(Role), "erased_accuracy", "retained_accuracy")
"""The primary metric's means over a role's pictures, which each model of a trial has."""

REDUCTION = 3
"""From rung to rung the step count grows by this, and of so many trials one goes on."""
_BOUND = re.compile(
    r"\s*(>=|<=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?:%\s*of\s+(base|unlearned)\s*)?"
)


@dataclass(frozen=True)
class Goal:
    """A number, and whether more of it or less is sought."""

    name: str
    maximize: bool = True


@dataclass(frozen=True)
class Bound:
    """A number that must be at least, or at most, some value; or, with `of`, some share of what it
    is on that model.
    """

    name: str
    at_least: bool
    value: float
    of: Model | None = None

    @classmethod
    def parse(cls, name: str, text: str) -> Bound | None:
        """The bound that '>= 0.8' or '>= 90% of base' spells; None if it spells none."""
        match = _BOUND.fullmatch(text)
        if match is None:
            return None
        sign, value, of = match.groups()
        try:
            share = float(value) / (100 if of else 1)
        except ValueError:
            return None
        model = next((model for model in EARLIER if model == of), None)
        return None if of and share <= 0 else cls(name, sign == ">=", share, model)

    @property
    def reference(self) -> str | None:
        """The number that it is a share of: "base.retained"."""
        plain = self.name.removeprefix("unlearned.")
        return f"{self.of}.{plain}" if self.of else None

    def limit(self, numbers: Mapping[str, float]) -> float:
        """What the number must reach, or stay below."""
        return self.value * (numbers[self.reference] if self.reference else 1.0)

    def is_told(self, numbers: Mapping[str, float]) -> bool:
        """Whether all is there that says how far it is kept."""
        return self.name in numbers and (self.reference is None or self.reference in numbers)

    def violation(self, numbers: Mapping[str, float]) -> float:
        """How far its number is on the wrong side: 0 or less where the bound holds."""
        gap = self.limit(numbers) - numbers[self.name]
        return gap if self.at_least else -gap

    def is_tighter(self, other: Bound) -> bool:
        """Whether it asks for more than another bound of the same kind."""
        return self.value > other.value if self.at_least else self.value < other.value

    def __str__(self) -> str:
        share = f"{self.value * 100:g}% of {self.of}" if self.of else f"{self.value:g}"
        return f"{'>=' if self.at_least else '<='} {share}"


@dataclass(frozen=True)
class Aggregate:
    """Several values of an axis in one study: every setting is measured on each of them, and what
    it comes to is the largest among those that keep the bounds, or the mean of all.
    """

    how: AggregateHow
    axes: tuple[str, ...]


class Confirm(Settings):
    """How the best settings are tried again on seeds that the search never saw."""

    top: int = Field(3, ge=0, description="how many of the best settings; 0: none")
    seeds: int = Field(5, ge=1, description="how many fresh seeds each")


class SearchSettings(Settings):
    """How the space is searched."""

    sampler: Sampler = Field("tpe", description="who proposes settings")
    pruner: Pruner = Field("none", description="who stops hopeless settings at fewer steps")
    trials: int = Field(40, ge=1, description="different settings tried, in all attempts together")
    steps: int | None = Field(
        None, ge=1, description="optimiser steps of fine-tuning after which no new trial begins"
    )
    gpu_hours: float | None = Field(
        None, gt=0, description="GPUs × hours after which no new trial begins; no GPU: workers"
    )
    parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="settings tried at a time; auto: as many as there are workers"
    )
    seed: int = Field(0, ge=0, description="seed of the sampler")
    checkpoints: int = Field(
        4, ge=0, description="training states kept, so that more steps of the same settings go on"
    )
    storage: str | None = Field(
        None, description="where the study lives: a database URL, or journal:///path"
    )


class DefendSettings(Settings):
    """How the settings of an unlearner are searched."""

    sampler: Sampler = Field("tpe", description="who proposes an unlearner's settings")
    trials: int = Field(10, ge=1, description="different settings, each with a search of its own")
    seed: int = Field(0, ge=0, description="seed of the sampler")


@dataclass(frozen=True)
class Defend:
    """An outer search: settings of an unlearner whose own worst case is the least bad one.

    `subject_to` bounds what the unlearning itself must do: one that breaks a bound is no defence.
    """

    space: Space
    subject_to: tuple[Bound, ...]
    settings: DefendSettings


@dataclass(frozen=True)
class Search:
    """A validated `search` block. Each value of the `for_each` axes has a worst case.

    `subject_to` are the bounds that the search keeps; with `levels`, several sets of bounds that
    each have a worst case among the same trials, they are the loosest.
    """

    goals: tuple[Goal, ...]
    subject_to: tuple[Bound, ...]
    space: Space
    for_each: tuple[str, ...]
    settings: SearchSettings
    confirm: Confirm
    written: Mapping[str, Any]
    levels: tuple[tuple[Bound, ...], ...] = ()
    aggregate: Aggregate | None = None
    defend: Defend | None = None

    @property
    def outer(self) -> Search:
        """The search for the best defence: its points are what each inner study holds fixed."""
        assert self.defend is not None
        [goal] = self.goals
        outer = self.defend.settings
        settings = SearchSettings(sampler=outer.sampler, trials=outer.trials, seed=outer.seed)
        return replace(
            self,
            goals=(Goal(goal.name, not goal.maximize),),
            subject_to=self.defend.subject_to,
            space=self.defend.space,
            settings=settings,
            defend=None,
        )

    @property
    def bounds(self) -> tuple[tuple[Bound, ...], ...]:
        """The sets of bounds that have a worst case each, the loosest first."""
        return self.levels or (self.subject_to,)

    @property
    def of_members(self) -> tuple[str, ...]:
        """The numbers that are kept of each aggregated value: those that several sets of bounds, or
        a defence, are judged by.
        """
        has_more = self.levels or self.defend
        return tuple(self.wanted) if has_more else tuple(goal.name for goal in self.goals)

    @property
    def wanted(self) -> dict[str, None]:
        """The numbers that every point must have, in the order in which they are missed."""
        bounds = (*self.subject_to, *(self.defend.subject_to if self.defend else ()))
        names = [bound.name for bound in bounds]
        names += [bound.reference for bound in bounds if bound.reference]
        return dict.fromkeys([*names, *(goal.name for goal in self.goals)])

    def studies(self, grid: Grid) -> list[dict[str, Any]]:
        """What each study holds fixed: a value of every axis in `for_each`."""
        found: list[dict[str, Any]] = [{}]
        for name in self.for_each:
            [axis] = grid.axes_called[name]
            found = [{**fixed, name: value} for fixed in found for value in axis.values]
        return found

    def corners(self, grid: Grid) -> Iterator[dict[str, Any]]:
        """Few whole points of all studies, with both ends of every range and every listed value."""
        for fixed in self.studies(grid):
            defences = [fixed] if self.defend is None else self.defend.space.within(fixed).corners()
            for defended in defences:
                yield from self.space.within(defended).corners()

    def canonical(self) -> dict[str, Any]:
        """The block as it was written, overrides applied."""
        return dict(self.written)
