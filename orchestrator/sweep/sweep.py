"""The sweep: everything that a sweep file says, as validated values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.artifacts import KEPT, Probe
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked, BasePlugin, EvaluationPlugin, MetricPlugin, Plugin
from orchestrator.core.settings import Settings
from orchestrator.sweep.grid import EditAxes, Grid
from orchestrator.sweep.resources import Resources
from orchestrator.sweep.search import Search
from orchestrator.sweep.trial import Trial

Keep = Literal["unlearned", "finetuned", "checkpoints"]


@dataclass(frozen=True)
class Evaluate:
    """How a model is judged.

    `sets` say what it is asked, their rows pooled; `sample` is the recipe that makes the images,
    unless none are drawn.
    """

    metrics: tuple[MetricPlugin, ...]
    sample: Plugin
    sets: tuple[EvaluationPlugin, ...]
    controls: bool = True
    draws: bool = True

    def probes(self, base: BasePlugin, erased: ConceptSet) -> list[Probe]:
        """What every model is asked from which these concepts are erased.

        Raises:
            ResurgeError: a set cannot be read, or nobody asks for an erased concept.
        """
        pooled = [probe for one in self.sets for probe in one.probes(base, erased.concepts)]
        found = pooled if len(self.sets) == 1 else list(dict.fromkeys(pooled))
        asked = {probe.concept for probe in found if probe.role == "erased"}
        if lacking := [concept for concept in erased.concepts if concept not in asked]:
            names = ", ".join(one.name for one in self.sets)
            raise ResurgeError(
                f"the evaluation set {names} has no row of the role erased for {lacking[0]!r}, and "
                "resurgence is defined on those: concepts there are spelled as in `concept`, and a "
                "list of sets pools their rows"
            )
        return found

    @property
    def gives_resurgence(self) -> bool:
        """Whether some metric scores single pictures, and there are some."""
        return self.draws and any(metric.gives_resurgence for metric in self.metrics)

    def asked_of(self, probes: Sequence[Probe]) -> Asked:
        """The rows in numbers."""
        rows = Counter(probe.role for probe in probes)
        each = self.sample.settings.images_per_prompt
        kept = dict.fromkeys(probe.concept for probe in probes if probe.role in KEPT)
        return Asked(tuple(kept), {role: each * count for role, count in rows.items()})


PUBLISHED = ("base", "unlearned", "retained")
"""The numbers that a published row may have: of the erased concepts on the base and after
unlearning, and of what should survive after unlearning.
"""


@dataclass(frozen=True)
class Reference:
    """Published numbers to be shown beside a sweep's own.

    Each row names settings by axes ("unlearn.method") and has some of the numbers in `PUBLISHED`.
    """

    source: str
    rows: tuple[Mapping[str, Any], ...]

    def canonical(self) -> dict[str, Any]:
        """As JSON values."""
        return {"source": self.source, "rows": [dict(row) for row in self.rows]}


@dataclass(frozen=True, eq=False)
class Sweep:
    """A validated sweep. Two sweeps are equal when they mean the same, however they are written.

    `grid` is the part that spans the trials; `search` replaces its axes by a space; `source` is the
    file's text without credentials, `overridden` what the command line made of it, if it did.
    `on_command_line` are the places (`store`, `mlflow`, `search.storage`) that the user named
    there: a file may not name every place.
    """

    name: str
    grid: Grid
    evaluate: Evaluate
    keep: tuple[Keep, ...]
    resources: Resources
    store: str | None
    mlflow: str | None
    source: str
    search: Search | None = None
    on_command_line: frozenset[str] = frozenset()
    overridden: str | None = None
    reference: Reference | None = None

    @property
    def recorded(self) -> str:
        """A sweep file that says what is run."""
        return self.source if self.overridden is None else self.overridden

    @property
    def storage(self) -> str | None:
        """Where its search's studies live, if the file says so."""
        return self.search.settings.storage if self.search else None

    @property
    def base(self) -> BasePlugin:
        """The model to begin from."""
        return self.grid.base

    @property
    def concepts(self) -> tuple[str, ...]:
        """What is to be erased, each on its own: names of concepts and of sets of them."""
        return self.grid.concepts

    @property
    def edits(self) -> tuple[EditAxes, ...]:
        """What is done to the model, in order."""
        return self.grid.edits

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the edits."""
        return self.grid.seeds

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial, in the grid's order; no two have the same parameters."""
        return self.grid.expansion.trials

    def canonical(self) -> dict[str, Any]:
        """The sweep as JSON values, overrides applied; `parse` of its JSON gives it again."""
        grid = self.grid
        resources = self.resources.model_dump(mode="json", exclude={"executor_settings"})
        if self.resources.executor_settings:
            resources["executor"] = {self.resources.executor: self.resources.executor_settings}
        found = {
            "name": self.name,
            "base": _named(grid.base),
            "concept": [grid.erased(name).canonical() for name in grid.concepts],
            "edits": [_canonical_edit(grid, edit) for edit in grid.edits],
            "evaluate": _canonical_evaluate(self.evaluate),
            "seeds": list(grid.seeds),
            "keep": list(self.keep),
            "zip": [list(names) for names in grid.zips] or None,
            "exclude": [_lists(point.values) for point in grid.exclude] or None,
            "include": [_included(grid, point.values) for point in grid.include] or None,
            "search": self.search.canonical() if self.search else None,
            "reference": self.reference.canonical() if self.reference else None,
            "resources": resources,
            "store": self.store,
            "mlflow": self.mlflow,
        }
        return {name: value for name, value in found.items() if value is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sweep) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return hash((self.name, self.concepts, self.seeds))


def given_settings(settings: Settings) -> dict[str, Any]:
    """The settings that were set, as JSON values."""
    return settings.model_dump(mode="json", exclude_unset=True)


def _named(plugin: Plugin) -> dict[str, Any]:
    return {plugin.name: given_settings(plugin.settings)}


def _lists(values: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(some) for name, some in values.items()}


def _included(grid: Grid, values: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    found = _lists(values)
    if "concept" in found:
        found["concept"] = [grid.erased(name).canonical() for name in found["concept"]]
    own = [f"{edit.key}.concepts" for edit in grid.edits if edit.kind == "unlearn"]
    return found | _named_sets(grid, {n: found[n] for n in own if n in found}, own)


def _named_sets(
    grid: Grid, values: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Values of which some are names of sets; a concept on its own is a list of one, because a list
    of nothing but concepts would be one set.
    """
    found = {name: list(some) for name, some in values.items()}
    for name in (name for name in names if name in found):
        written = (grid.erased(value).canonical() for value in found[name])
        found[name] = [[one] if isinstance(one, str) else one for one in written]
    return found


def _canonical_edit(grid: Grid, edit: EditAxes) -> dict[str, Any]:
    choices = [{choice.label: _lists(choice.settings)} for choice in edit.choices]
    if edit.kind == "unlearn":
        own = _named_sets(grid, edit.settings, ("concepts",))
        return {"unlearn": {"method": choices, **own} if own else choices}
    if edit.kind == "merge":
        return {"merge": choices}
    return {"finetune": {"dataset": choices, **_lists(edit.settings)}}


def _canonical_evaluate(evaluate: Evaluate) -> dict[str, Any]:
    return {
        "metrics": [_named(metric) for metric in evaluate.metrics],
        **given_settings(evaluate.sample.settings),
        **_canonical_sets(evaluate.sets),
        "controls": evaluate.controls,
        **({} if evaluate.draws else {"pictures": "none"}),
    }


def _canonical_sets(sets: Sequence[EvaluationPlugin]) -> dict[str, Any]:
    """The settings of `templates` stand in the block itself, as they may in a file."""
    values: dict[str, Any] = {"retain": None, "prompts": None}
    if [one.name for one in sets] == ["templates"]:
        return values | given_settings(sets[0].settings) | {"set": "templates"}
    return values | {"set": [_named(one) for one in sets]}
