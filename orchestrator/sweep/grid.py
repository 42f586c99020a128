"""Axes -> trials.

The grid is the product of its axes in the order of the file: the concept, each edit's plug-in, that
plug-in's settings, the edit's own settings, the seed. A plug-in's settings are axes only where that
plug-in is chosen. A setting with one value is an axis of length one.

- `zip` makes axes move together.
- `exclude` drops every grid point that matches all of its values.
- `include` adds points after that; what it names may lie outside the axes, what it does not name
  takes all of the grid's values. A point that the grid has already is merged silently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from orchestrator.config.checks import build
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import Place, Problem
from orchestrator.core.plugin import (
    BasePlugin,
    Plugin,
    PluginKind,
    RecipePlugin,
    UnlearnerPlugin,
)
from orchestrator.core.registry import find
from orchestrator.sweep.trial import Edit, EditKind, Scalar, Trial, UnlearnSettings, scalar

MAX_TRIALS = 100_000
HEADS: Mapping[str, str] = {"unlearn": "method", "finetune": "dataset", "merge": "update"}
"""The last word of the axis that chooses an edit's plug-in."""
CHOSEN: Mapping[EditKind, PluginKind] = {
    "unlearn": "unlearner", "finetune": "dataset", "merge": "update",
}  # fmt: skip
_NOWHERE = Place("")


class BaseUnknownError(Exception):
    """Raised by what stands in for a base that the file names wrongly, when it is asked."""


@dataclass(frozen=True)
class PluginAxes:
    """A plug-in, and for each setting that the file gives the values to try."""

    plugin: type[Plugin]
    settings: Mapping[str, tuple[Any, ...]]
    place: Place = field(default=_NOWHERE, compare=False)

    @property
    def label(self) -> str:
        """What results call it: the plug-in's name."""
        return self.plugin.name


@dataclass(frozen=True)
class EditAxes:
    """One edit of the sweep. `choices` are unlearners, updates to merge, or the data sets to
    fine-tune on.

    `settings` are the fine-tuning recipe's; an unlearner's settings belong to its choice, and the
    edit's own are what it erases ("concepts": names) and in which order.
    """

    key: str
    kind: EditKind
    choices: tuple[PluginAxes, ...]
    settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    place: Place = field(default=_NOWHERE, compare=False)

    @property
    def head(self) -> str:
        """The flat name of the axis that chooses the plug-in."""
        return f"{self.key}.{HEADS[self.kind]}"

    @property
    def plugin_kind(self) -> PluginKind:
        """What it chooses from."""
        return CHOSEN[self.kind]


@dataclass(frozen=True)
class Selection:
    """An entry of `include` or `exclude`: flat names and the values meant."""

    values: Mapping[str, tuple[Any, ...]]
    place: Place = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True)
class Axis:
    """A flat name and its values; with `when`, only where that other axis has that index."""

    name: str
    values: tuple[Any, ...]
    when: tuple[str, int] | None = None


@dataclass(frozen=True)
class Grid:
    """The part of a sweep that spans its trials.

    `concepts` are names; what a name means that is no concept's own stands in `sets`.
    """

    base: BasePlugin
    concepts: tuple[str, ...]
    edits: tuple[EditAxes, ...]
    seeds: tuple[int, ...]
    zips: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[Selection, ...] = ()
    include: tuple[Selection, ...] = ()
    place: Place = field(default=_NOWHERE, compare=False)
    sets: Mapping[str, ConceptSet] = field(default_factory=dict)
    made: dict[Any, Plugin] = field(default_factory=dict, compare=False, repr=False)
    """Plug-ins made so far, by class and settings: the grids that come of this one share them."""

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis, in the order in which the grid runs through them."""
        found = [Axis("concept", self.concepts)]
        for edit in self.edits:
            found.append(Axis(edit.head, tuple(choice.label for choice in edit.choices)))
            for index, choice in enumerate(edit.choices):
                found += [
                    Axis(f"{edit.key}.{choice.label}.{name}", values, (edit.head, index))
                    for name, values in choice.settings.items()
                ]
            found += [Axis(f"{edit.key}.{name}", vals) for name, vals in edit.settings.items()]
        return (*found, Axis("seed", self.seeds))

    @cached_property
    def axes_called(self) -> dict[str, list[Axis]]:
        """By name: a plug-in that is named twice, with other settings, has its axes twice."""
        found: dict[str, list[Axis]] = {}
        for axis in self.axes:
            found.setdefault(axis.name, []).append(axis)
        return found

    @cached_property
    def expansion(self) -> Expansion:
        """The trials, or why they cannot be had."""
        return expand(self)

    def erased(self, name: str) -> ConceptSet:
        """What a name of the concept axis means."""
        return self.sets.get(name) or ConceptSet.of(name)

    def all_sets(self) -> tuple[ConceptSet, ...]:
        """What some trial erases."""
        more = [point.values.get("concept", ()) for point in self.include]
        names = dict.fromkeys(name for some in (self.concepts, *more) for name in some)
        return tuple(map(self.erased, names))

    def all_concepts(self) -> tuple[str, ...]:
        """The concepts that some trial erases, each once."""
        return tuple(dict.fromkeys(c for erased in self.all_sets() for c in erased.concepts))

    @property
    def reads_files(self) -> bool:
        """Whether some of its concepts stand in files beside the sweep's own."""
        return any(one.file is not None for one in self.sets.values())

    def known_sets(self) -> tuple[ConceptSet, ...]:
        """Of `all_sets` those whose every concept the base knows."""
        known = self.base.concepts()
        return tuple(s for s in self.all_sets() if known is None or set(s.concepts) <= set(known))

    def size(self) -> int:
        """How many points the axes span before `zip`, `exclude` and `include`."""
        count = len(self.concepts) * len(self.seeds)
        for edit in self.edits:
            count *= sum(_product(choice.settings) for choice in edit.choices)
            count *= _product(edit.settings)
        return count


@dataclass(frozen=True)
class Expansion:
    """What a grid comes to."""

    trials: tuple[Trial, ...]
    problems: tuple[Problem, ...]


def expand(grid: Grid) -> Expansion:
    """The trials of a grid, and every problem that only their combinations show."""
    parts = [grid, *(_included(grid, selection) for selection in grid.include)]
    problems = [problem for part in parts for problem in _too_large(part)]
    if problems:
        return Expansion((), tuple(problems))
    found: dict[frozenset[tuple[str, Scalar]], Trial] = {}
    unmatched = set(range(len(grid.exclude)))
    for part in parts:
        builder = _TrialBuilder(part, unmatched)
        for trial in builder.trials():
            found.setdefault(frozenset(trial.params.items()), trial)
        problems += builder.problems
    problems += [
        grid.exclude[i].place.problem("matches no trial of the grid; remove it or mend it")
        for i in sorted(unmatched)
    ]
    if not found and not problems:
        place = grid.exclude[-1].place
        problems.append(place.problem("leaves no trial of the grid; there is nothing to run"))
    return Expansion(tuple(found.values()), tuple(dict.fromkeys(problems)))


def _product(settings: Mapping[str, tuple[Any, ...]]) -> int:
    return math.prod(len(values) for values in settings.values())


def _too_large(grid: Grid) -> list[Problem]:
    size = grid.size()
    if size <= MAX_TRIALS:
        return []
    if not grid.zips:
        return [grid.place.problem(f"must have at most {MAX_TRIALS:,} trials but has {size:,}")]
    for count, _ in enumerate(_points(grid), 1):
        if count > MAX_TRIALS:
            what = f"must have at most {MAX_TRIALS:,} trials but has more ({size:,} before zip)"
            return [grid.place.problem(what)]
    return []


def _points(grid: Grid) -> Iterator[dict[str, int]]:
    """Axis name -> index of its value, for every point of the grid."""
    groups = {name: number for number, names in enumerate(grid.zips) for name in names}
    axes = grid.axes
    point: dict[str, int] = {}
    shared: dict[int, int] = {}

    def walk(depth: int) -> Iterator[dict[str, int]]:
        if depth == len(axes):
            yield point.copy()
            return
        axis = axes[depth]
        if axis.when and point[axis.when[0]] != axis.when[1]:
            yield from walk(depth + 1)
            return
        group = groups.get(axis.name)
        if group is not None and group in shared:
            point[axis.name] = shared[group]
            yield from walk(depth + 1)
        else:
            for index in range(len(axis.values)):
                point[axis.name] = index
                if group is not None:
                    shared[group] = index
                yield from walk(depth + 1)
            shared.pop(group, None)  # type: ignore[arg-type]
        del point[axis.name]

    return walk(0)


class _TrialBuilder:
    """Makes a grid's points into trials; each edit with the same settings is made once."""

    def __init__(self, grid: Grid, unmatched: set[int]) -> None:
        self.grid = grid
        self.unmatched = unmatched
        self.problems: list[Problem] = []
        self.edits: dict[tuple[Any, ...], tuple[Edit, dict[str, Scalar]] | None] = {}
        self.plugins = grid.made
        self.checked: set[tuple[int, str]] = set()
        self.of_base: dict[str, Scalar] = {}
        with suppress(BaseUnknownError):
            base = grid.base
            given = dict.fromkeys(base.settings.model_fields_set)
            self.of_base = {"base": base.name, **_params(f"base.{base.name}", base, given)}
        self.deciding: dict[str, list[tuple[str, ...]]] = {}
        """By edit, for each of its choices, the axes that decide it."""
        for edit in grid.edits:
            own = [f"{edit.key}.{name}" for name in edit.settings]
            self.deciding[edit.key] = [
                (edit.head, *(f"{edit.key}.{choice.label}.{n}" for n in choice.settings), *own)
                for choice in edit.choices
            ]

    def trials(self) -> Iterator[Trial]:
        """The trials that are not excluded and have no problem."""
        for point in _points(self.grid):
            if not self._excluded(point) and (trial := self._trial(point)):
                yield trial

    def _excluded(self, point: Mapping[str, int]) -> bool:
        matched = False
        for number, selection in enumerate(self.grid.exclude):
            if all(
                name in point
                and any(
                    axis.values[point[name]] in values
                    for axis in self.grid.axes_called[name]
                    if not axis.when or point[axis.when[0]] == axis.when[1]
                )
                for name, values in selection.values.items()
            ):
                self.unmatched.discard(number)
                matched = True
        return matched

    def _trial(self, point: Mapping[str, int]) -> Trial | None:
        erased = self.grid.erased(self.grid.concepts[point["concept"]])
        params: dict[str, Scalar] = {**self.of_base, "concept": erased.name}
        edits: list[Edit] = []
        for axes in self.grid.edits:
            names = self.deciding[axes.key][point[axes.head]]
            key = (axes.key, *(point[name] for name in names))
            if key not in self.edits:
                self.edits[key] = self._edit(axes, point)
            made = self.edits[key]
            if made is None:
                return None
            self._ask(axes, made[0], point, erased)
            edits.append(made[0])
            params |= made[1]
        self._say_unlike(edits, erased)
        self._say_learned_twice(edits)
        params["seed"] = seed = self.grid.seeds[point["seed"]]
        return Trial(erased, tuple(edits), seed, params)

    def _edit(
        self, axes: EditAxes, point: Mapping[str, int]
    ) -> tuple[Edit, dict[str, Scalar]] | None:
        choice = axes.choices[point[axes.head]]
        prefix = f"{axes.key}.{choice.label}"
        plugin = self._plugin(choice.plugin, choice.settings, prefix, point, choice.place)
        if plugin is None:
            return None
        params = {axes.head: choice.label, **_params(prefix, plugin, choice.settings)}
        if axes.kind == "unlearn":
            own = {n: values[point[f"{axes.key}.{n}"]] for n, values in axes.settings.items()}
            params |= {f"{axes.key}.{name}": value for name, value in own.items()}
            erased = self.grid.erased(own["concepts"]) if "concepts" in own else None
            order = own.get("order", UnlearnSettings().order)
            return Edit(axes.key, axes.kind, plugin, concepts=erased, order=order), params
        if axes.kind == "merge":
            return Edit(axes.key, axes.kind, plugin), params
        finetune = find("recipe", "finetune")
        recipe = self._plugin(finetune, axes.settings, axes.key, point, axes.place)
        if recipe is None:
            return None
        params |= _params(axes.key, recipe, axes.settings)
        return Edit(axes.key, axes.kind, recipe, plugin), params

    def _plugin(
        self,
        cls: type[Plugin],
        settings: Mapping[str, tuple[Any, ...]],
        prefix: str,
        point: Mapping[str, int],
        place: Place,
    ) -> Plugin | None:
        values = {name: axis[point[f"{prefix}.{name}"]] for name, axis in settings.items()}
        key = (cls, canonical_json(values))
        if key not in self.plugins:  # made once: a data set may have read a whole folder
            made, faults = build(cls.Settings, values)
            self.problems += [place.problem(fault) for fault in faults]
            if made is None:
                return None
            self.plugins[key] = cls(made)
        return self.plugins[key]

    def _ask(
        self, axes: EditAxes, edit: Edit, point: Mapping[str, int], erased: ConceptSet
    ) -> None:
        """Let the plug-ins say whether they fit the base and what is erased, once each."""
        if (id(edit), erased.name) in self.checked:
            return
        self.checked.add((id(edit), erased.name))
        choice = axes.choices[point[axes.head]]
        for plugin in (edit.plugin, edit.dataset):
            if plugin is not None:
                place = choice.place if plugin.kind != "recipe" else axes.place
                with suppress(BaseUnknownError):
                    parts = edit.erases(erased) if edit.kind == "unlearn" else (erased,)
                    for part in parts:
                        found = plugin.problems_of(self.grid.base, part)
                        self.problems += [place.problem(what) for what in found]

    def _say_unlike(self, edits: Sequence[Edit], erased: ConceptSet) -> None:
        """What is scored as erased must be erased, and what is erased must be scored."""
        unlearnings = [
            edit
            for edit in edits
            if isinstance(edit.plugin, UnlearnerPlugin) and edit.plugin.changes
        ]
        if all(edit.concepts is None for edit in unlearnings):
            return
        parts = (part for edit in unlearnings for part in edit.erases(erased))
        gone = dict.fromkeys(concept for part in parts for concept in part.concepts)
        if set(gone) != set(erased.concepts):
            self.problems.append(
                self.grid.place.problem(
                    f"the unlearnings of a trial erase {', '.join(gone)} but its concept is "
                    f"{erased.name!r} ({', '.join(erased.concepts)}): between them they must erase "
                    "what is scored as erased, and nothing else"
                )
            )

    def _say_learned_twice(self, edits: Sequence[Edit]) -> None:
        """A token of one trial is learned once: the second time the model knows it already."""
        recipes = (edit.plugin for edit in edits if isinstance(edit.plugin, RecipePlugin))
        learned = Counter(token for recipe in recipes for token in recipe.tokens())
        for token, count in learned.items():
            if count > 1:
                self.problems.append(
                    self.grid.place.problem(
                        f"{count} edits of a trial learn {token}; give each a token of its own"
                    )
                )


def _params(prefix: str, plugin: Plugin, names: Mapping[str, Any]) -> dict[str, Scalar]:
    """The flat parameters of the settings that the file gives."""
    full = plugin.settings.model_dump(mode="json")
    return {f"{prefix}.{name}": scalar(full[name]) for name in names}


def point_grid(grid: Grid, point: Mapping[str, Any]) -> Grid:
    """The grid at one point of a search: its settings have these values and no others."""
    return _included(grid, Selection({name: (value,) for name, value in point.items()}, grid.place))


def _included(grid: Grid, selection: Selection) -> Grid:
    """The grid with what an include names put in the place of the axes' values."""
    named = selection.values
    zips = (tuple(name for name in group if name not in named) for group in grid.zips)
    return replace(
        grid,
        concepts=named.get("concept", grid.concepts),
        edits=tuple(_included_edit(edit, named) for edit in grid.edits),
        seeds=named.get("seed", grid.seeds),
        zips=tuple(filter(None, zips)),
        exclude=(),
        include=(),
        place=selection.place,
    )


def _included_edit(edit: EditAxes, named: Mapping[str, tuple[Any, ...]]) -> EditAxes:
    choices: list[PluginAxes] = []
    for label in named.get(edit.head, ()):
        entries = [choice for choice in edit.choices if choice.label == label]
        choices += entries or [PluginAxes(find(edit.plugin_kind, label), {}, edit.place)]
    own = _under(edit.key, named)
    own.pop(HEADS[edit.kind], None)
    return replace(
        edit,
        choices=tuple(
            replace(c, settings={**c.settings, **_under(f"{edit.key}.{c.label}", named)})
            for c in choices or edit.choices
        ),
        settings={**edit.settings, **own},
    )


def _under(prefix: str, named: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """What stands right under a flat name."""
    names = [name for name in named if name.rpartition(".")[0] == prefix]
    return {name.rpartition(".")[2]: named[name] for name in names}
