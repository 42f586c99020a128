"""Reads the `search` block of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from orchestrator.grid import Axis, EditAxes, Grid, point_grid
from orchestrator.plugin import MetricPlugin, suggest
from orchestrator.read_choices import fill, known, texts, value_of
from orchestrator.read_selections import Setting, kind_of, labels, reachable, setting
from orchestrator.search_settings import (
    FOR_SEVERAL_GOALS,
    NUMBERS,
    Bound,
    Confirm,
    Goal,
    Search,
    SearchSettings,
)
from orchestrator.space import Choices, Condition, Dimension, Range, Space
from orchestrator.yaml_file import At, show

OWN = ("maximize", "minimize", "subject_to", "space", "for_each", "confirm")


def read_search(at: At, grid: Grid, metrics: tuple[MetricPlugin, ...]) -> Search | None:
    """The block, checked against the grid whose axes its space replaces."""
    before = len(at.problems)
    given = known(at, (*OWN, *SearchSettings.model_fields), required=("space",))
    for_each = _for_each(given["for_each"], grid) if "for_each" in given else ()
    space = _Reader(grid, for_each).space(given["space"]) if "space" in given else Space(())
    plain = {name: value for name, value in given.items() if name not in OWN}
    settings = cast("SearchSettings | None", fill(SearchSettings, plain, at))
    confirm = Confirm()
    if "confirm" in given:
        inner = known(given["confirm"], tuple(Confirm.model_fields))
        confirm = cast("Confirm", fill(Confirm, inner, given["confirm"]) or confirm)
    goals = _goals(given, at, metrics, space)
    bounds = _bounds(given["subject_to"], metrics, space) if "subject_to" in given else ()
    if len(at.problems) > before or settings is None:
        return None
    found = Search(goals, bounds, space, for_each, settings, confirm, at.node.plain())
    _say_unfit(found, given, at)
    _say_left_over(found, grid, at)
    _say_impossible(found, grid, given["space"])
    return found if len(at.problems) == before else None


def _for_each(at: At, grid: Grid) -> tuple[str, ...]:
    axes = {axis.name: axis for axis in grid.axes if axis.when is None and axis.name != "seed"}
    names = texts(at)
    for item in at.items():
        if not isinstance(item.value, str):
            continue
        if item.value not in axes:
            item.say(f"unknown axis {item.value!r}{suggest(item.value, axes)}")
        elif len(set(axes[item.value].values)) < len(axes[item.value].values):
            item.say(f"the axis has the same name twice: {', '.join(axes[item.value].values)}")
    return names


class _Reader:
    """Reads the space's settings, those above known to those below."""

    def __init__(self, grid: Grid, for_each: tuple[str, ...]) -> None:
        self.grid = grid
        self.for_each = for_each
        self.heads = {edit.head: edit for edit in grid.edits}
        self.axes: dict[str, list[Axis]] = {}
        for axis in grid.axes:
            self.axes.setdefault(axis.name, []).append(axis)

    def space(self, at: At) -> Space:
        if not isinstance(at.value, dict) or not at.value:
            at.say(f"must map settings to values or ranges but got {show(at.node.plain())}")
            return Space(())
        found: dict[str, Dimension] = {}
        for name in at.value:
            made = self.dimension(name, at.key(name), found)
            if made is not None:
                found[name] = made
        return Space(tuple(found.values()))

    def dimension(self, name: str, at: At, above: Mapping[str, Dimension]) -> Dimension | None:
        meant = setting(self.grid, name)
        if name in self.for_each:
            at.say("is named by `for_each` and cannot be searched too")
        elif name == "seed":
            at.say("seeds are replicates, not settings; confirm the worst case on fresh ones")
        elif meant is None and name not in self.heads and name != "concept":
            names = dict.fromkeys([*self.axes, *reachable(self.grid)])
            at.say(f"unknown setting {name!r}{suggest(name, names)}")
        else:
            before = len(at.problems)
            when = (*self.implied(name, at, above), *self.stated(at, above))
            made = self.values(name, at, meant)
            if made is not None and len(at.problems) == before:
                return replace(made, when=when)
        return None

    def implied(self, name: str, at: At, above: Mapping[str, Dimension]) -> tuple[Condition, ...]:
        """A plug-in's setting is there where the plug-in is chosen."""
        key, _, rest = name.partition(".")
        label = rest.rpartition(".")[0]
        edit = next((edit for edit in self.grid.edits if edit.key == key), None)
        if not label or edit is None:
            return ()
        chosen = above.get(edit.head)
        if isinstance(chosen, Choices):
            offered = chosen.values
        else:
            offered = tuple(choice.label for choice in edit.choices)
        if label not in offered:
            at.say(f"has no effect: {label!r} is not chosen by {edit.head} above it")
        is_open = chosen is not None or edit.head in self.for_each
        return ((edit.head, (label,)),) if is_open else ()

    def stated(self, at: At, above: Mapping[str, Dimension]) -> tuple[Condition, ...]:
        """`when: {finetune.adapter: lora}`."""
        if not (isinstance(at.value, dict) and "when" in at.value):
            return ()
        when = at.key("when")
        if not isinstance(when.value, dict) or not when.value:
            when.say(f"must map settings above to values but got {show(when.node.plain())}")
            return ()
        found = []
        for name in when.value:
            entry, dimension = when.key(name), above.get(name)
            if not isinstance(dimension, Choices):
                lists = [n for n, d in above.items() if isinstance(d, Choices)]
                hint = suggest(name, lists) if lists else ""
                entry.say(f"{name!r} is no listed setting above this one{hint}")
                continue
            values = tuple(item.node.plain() for item in entry.items())
            for value in values:
                if value not in dimension.values:
                    entry.say(f"{name} has no value {show(value)}")
            found.append((name, values))
        return tuple(found)

    def values(self, name: str, at: At, meant: Setting | None) -> Dimension | None:
        node = at.value
        if not isinstance(node, dict) or name in self.heads:
            return self.choices(name, at, meant)
        kinds = [kind for kind in ("int", "float", "choices") if kind in node] or [
            kind for kind in ("log",) if kind in node
        ]
        if len(kinds) != 1:
            forms = "{log: [low, high]}, {int: [low, high]}, {float: [low, high]} or a list"
            at.say(f"must be one of {forms} but got {show(at.node.plain())}")
            return None
        if kinds[0] == "choices":
            known(at, ("choices", "when"))
            return self.choices(name, at.key("choices"), meant)
        return self.range(name, at, kinds[0], meant)

    def choices(self, name: str, at: At, meant: Setting | None) -> Choices | None:
        before = len(at.problems)
        if not at.items():
            at.say("must have at least one value but is empty")
        if name in self.heads:
            values = self.names(at, self.heads[name])
        elif meant is None:
            values = texts(at)
            for item in at.items():
                if item.value not in self.grid.concepts:
                    allowed = suggest(str(item.value), list(self.grid.concepts))
                    item.say(f"{item.value!r} is no concept of the sweep{allowed}")
        else:
            values = tuple(value_of(meant.cls, meant.name, item) for item in at.items())
        if any(value in values[:i] for i, value in enumerate(values)):
            at.say("has the same value twice")
        return Choices(name, values) if len(at.problems) == before else None

    def names(self, at: At, edit: EditAxes) -> tuple[str, ...]:
        """Plug-ins' names; a data set's own settings stand beside its name."""
        bare = [
            replace(item, node=replace(item.node, value=next(iter(item.value))))
            if isinstance(item.value, dict) and len(item.value) == 1
            else item
            for item in at.items()
        ]
        return tuple(label for item in bare for label in labels(item, kind_of(edit)))

    def range(self, name: str, at: At, kind: str, meant: Setting | None) -> Range | None:
        extras = {"log": ("digits",), "int": ("step", "log"), "float": ("step", "digits")}[kind]
        given = known(at, (kind, "when", *extras))
        if meant is None:
            at.say("must be a list of values")
            return None
        ends = given[kind].items()
        if not isinstance(given[kind].value, list) or len(ends) != 2:
            given[kind].say(f"must be [low, high] but got {show(given[kind].node.plain())}")
            return None
        before = len(at.problems)
        low, high = (value_of(meant.cls, meant.name, end) for end in ends)
        step = _number(given["step"]) if "step" in given else None
        digits = _number(given["digits"]) if "digits" in given else 2
        if len(at.problems) > before:
            return None
        is_log = kind == "log" or ("log" in given and given["log"].value is True)
        made = Range(name, low, high, kind == "int", is_log, step, int(digits or 2))
        _say_bad_range(made, given[kind])
        return made


def _number(at: At) -> float | None:
    value = at.value
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        at.say(f"must be a number above 0 but got {show(at.node.plain())}")
        return None
    return value


def _say_bad_range(made: Range, at: At) -> None:
    numbers = [made.low, made.high]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        at.say("must be a range of numbers; write a list of values")
    elif made.low >= made.high:
        at.say(f"the low end must be below the high end but got {show(numbers)}")
    elif made.log and made.low <= 0:
        at.say(f"a logarithm needs a low end above 0 but got {made.low:g}")
    elif made.is_int and any(n != int(n) for n in (*numbers, made.step or 1)):
        at.say("whole numbers must have whole ends and a whole step")
    elif made.log and made.step is not None:
        at.say("is laid out by its logarithm and can have no step")


def _names(metrics: tuple[MetricPlugin, ...], space: Space) -> dict[str, None]:
    ranges = [d.name for d in space.dimensions if isinstance(d, Range)]
    return dict.fromkeys([*NUMBERS, *(metric.name for metric in metrics), *ranges])


def _is_number(name: str, names: Mapping[str, None]) -> bool:
    """A known number, or one of a metric's own: "finetune_success.share"."""
    return name in names or (name.partition(".")[0] in names and "." in name)


def _goals(
    given: Mapping[str, At], at: At, metrics: tuple[MetricPlugin, ...], space: Space
) -> tuple[Goal, ...]:
    names = _names(metrics, space)
    found: list[Goal] = []
    for key in ("maximize", "minimize"):
        for item in given[key].items() if key in given else ():
            name = item.value
            if not isinstance(name, str) or not _is_number(name, names):
                item.say(f"unknown number {show(name)}{suggest(str(name), names)}")
            elif any(name == goal.name for goal in found):
                item.say(f"duplicate value {name!r}")
            else:
                found.append(Goal(name, key == "maximize"))
    if not ("maximize" in given or "minimize" in given):
        at.say("missing key 'maximize' (a number, or several for their Pareto front)")
    return tuple(found)


def _bounds(at: At, metrics: tuple[MetricPlugin, ...], space: Space) -> tuple[Bound, ...]:
    names = _names(metrics, space)
    if not isinstance(at.value, dict):
        at.say(f"must map numbers to bounds such as '>= 0.8' but got {show(at.node.plain())}")
        return ()
    found = []
    for name in at.value:
        entry = at.key(name)
        bound = Bound.parse(name, entry.value) if isinstance(entry.value, str) else None
        if not _is_number(name, names):
            at.say_key(name, f"unknown number {name!r}{suggest(name, names)}")
        elif bound is None:
            entry.say(f"must look like '>= 0.8' or '<= 0.1' but got {show(entry.node.plain())}")
        else:
            found.append(bound)
    return tuple(found)


def _say_unfit(search: Search, given: Mapping[str, At], at: At) -> None:
    """Samplers and pruners that cannot do what is asked."""
    sampler, place = search.settings.sampler, given.get("sampler", at)
    if len(search.goals) > 1 and sampler not in FOR_SEVERAL_GOALS:
        allowed = ", ".join(FOR_SEVERAL_GOALS)
        place.say(f"{sampler!r} seeks one number only; for several use one of {allowed}")
    if len(search.goals) > 1 and search.settings.pruner != "none":
        given["pruner"].say("several numbers cannot be pruned; set it to none")
    loose = [d.name for d in search.space.dimensions if d.size is None]
    if sampler == "grid" and loose:
        place.say(f"'grid' needs lists, or ranges with a step, but {loose[0]} has none")
    if search.settings.pruner != "none" and not any(
        dimension.name.endswith(".steps") for dimension in search.space.dimensions
    ):
        given["pruner"].say("prunes at fewer steps: the space must have a fine-tune's steps")


def _say_left_over(search: Search, grid: Grid, at: At) -> None:
    """Every axis of the file must have one value, or be searched, or have studies of its own."""
    searched = {dimension.name for dimension in search.space.dimensions} | set(search.for_each)
    for axis in grid.axes:
        if len(axis.values) > 1 and axis.name not in searched and axis.name != "seed":
            at.say(
                f"{axis.name} has {len(axis.values)} values: put it into search.space or "
                f"search.for_each, or give it one value"
            )


def _say_impossible(search: Search, grid: Grid, at: At) -> None:
    """Problems that only whole points show, found at the ends of the space."""
    if at.problems:
        return
    seen: set[str] = set()
    for fixed in studies(search, grid):
        for point in search.space.within(fixed).corners():
            for problem in point_grid(grid, point).expansion.problems:
                if problem.what not in seen:
                    seen.add(problem.what)
                    shown = ", ".join(f"{name}: {show(value)}" for name, value in point.items())
                    at.say(f"{problem.what} (at {shown})")


def studies(search: Search, grid: Grid) -> list[dict[str, Any]]:
    """What each study holds fixed: a value of every axis in `for_each`."""
    found: list[dict[str, Any]] = [{}]
    for name in search.for_each:
        axis = next(axis for axis in grid.axes if axis.name == name)
        found = [{**fixed, name: value} for fixed in found for value in axis.values]
    return found
