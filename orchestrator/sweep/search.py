"""What a sweep's `search` block says: what is sought, where, how long, and how it is confirmed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.core.settings import Settings
from orchestrator.sweep.grid import Grid
from orchestrator.sweep.space import Space

Sampler = Literal["tpe", "gp", "cmaes", "random", "grid", "nsga2"]
Pruner = Literal["none", "median", "hyperband"]
FOR_SEVERAL_GOALS: tuple[Sampler, ...] = ("tpe", "gp", "random", "grid", "nsga2")
NUMBERS = (
    "resurgence",
    "recovery",
    "erased_accuracy",
    "retained_accuracy",
    "unlearned_accuracy",
)
"""What a trial has whatever metrics the sweep names: the primary metric's means."""

REDUCTION = 3
"""From rung to rung the step count grows by this, and of so many trials one goes on."""
_BOUND = re.compile(r"\s*(>=|<=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Goal:
    """A number, and whether more of it or less is sought."""

    name: str
    maximize: bool = True


@dataclass(frozen=True)
class Bound:
    """A number that must be at least, or at most, some value."""

    name: str
    at_least: bool
    value: float

    @classmethod
    def parse(cls, name: str, text: str) -> Bound | None:
        """The bound that '>= 0.8' spells; None if it spells none."""
        match = _BOUND.fullmatch(text)
        try:
            return cls(name, match[1] == ">=", float(match[2])) if match else None
        except ValueError:
            return None

    def violation(self, value: float) -> float:
        """How far a value is on the wrong side: 0 or less where the bound holds."""
        return self.value - value if self.at_least else value - self.value

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


class Confirm(Settings):
    """How the best settings are tried again on seeds that the search never saw."""

    top: int = Field(3, ge=0, description="how many of the best settings; 0: none")
    seeds: int = Field(5, ge=1, description="how many fresh seeds each")


class SearchSettings(Settings):
    """How the space is searched."""

    sampler: Sampler = Field("tpe", description="who proposes settings")
    pruner: Pruner = Field("none", description="who stops hopeless settings at fewer steps")
    trials: int = Field(40, ge=1, description="different settings tried, in all attempts together")
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


@dataclass(frozen=True)
class Search:
    """A validated `search` block. Each value of the `for_each` axes has a worst case."""

    goals: tuple[Goal, ...]
    subject_to: tuple[Bound, ...]
    space: Space
    for_each: tuple[str, ...]
    settings: SearchSettings
    confirm: Confirm
    written: Mapping[str, Any]

    def studies(self, grid: Grid) -> list[dict[str, Any]]:
        """What each study holds fixed: a value of every axis in `for_each`."""
        found: list[dict[str, Any]] = [{}]
        for name in self.for_each:
            [axis] = grid.axes_called[name]
            found = [{**fixed, name: value} for fixed in found for value in axis.values]
        return found

    def canonical(self) -> dict[str, Any]:
        """The block as it was written, overrides applied."""
        return dict(self.written)
