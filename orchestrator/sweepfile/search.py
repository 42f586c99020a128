"""Reads the `search` block of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config.fields import fill, known, texts
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import MetricPlugin
from orchestrator.sweep.grid import Grid, point_grid
from orchestrator.sweep.search import (
    FOR_SEVERAL_GOALS,
    NUMBERS,
    Bound,
    Confirm,
    Goal,
    Search,
    SearchSettings,
)
from orchestrator.sweep.space import Range, Space
from orchestrator.sweepfile.space import read_space, say_same_name

OWN = ("maximize", "minimize", "subject_to", "space", "for_each", "confirm")


def read_search(at: At, grid: Grid, metrics: tuple[MetricPlugin, ...]) -> Search | None:
    """The block, checked against the grid whose axes its space replaces."""
    before = len(at.problems)
    given = known(at, (*OWN, *SearchSettings.model_fields), required=("space",))
    if not isinstance(at.value, dict):
        return None
    for_each = _for_each(given["for_each"], grid) if "for_each" in given else ()
    space = read_space(given["space"], grid, for_each) if "space" in given else Space(())
    plain = {name: value for name, value in given.items() if name not in OWN}
    settings = fill(SearchSettings, plain, at)
    confirm = Confirm()
    if "confirm" in given:
        inner = known(given["confirm"], tuple(Confirm.model_fields))
        confirm = fill(Confirm, inner, given["confirm"]) or confirm
    goals = _goals(given, at, metrics, space)
    bounds = _bounds(given["subject_to"], metrics, space) if "subject_to" in given else ()
    if len(at.problems) > before or settings is None:
        return None
    found = Search(goals, bounds, space, for_each, settings, confirm, at.node.plain())
    _say_unfit(found, grid, given, at)
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
        else:
            say_same_name(axes[item.value].values, item)
    return names


def _names(metrics: tuple[MetricPlugin, ...], space: Space) -> dict[str, None]:
    """Numbers that every trial has."""
    has_primary = any(metric.needs == "images" and metric.per_picture for metric in metrics)
    ranges = [d.name for d in space.dimensions if isinstance(d, Range) and not d.when]
    own = NUMBERS if has_primary else ()
    return dict.fromkeys([*own, *(metric.name for metric in metrics), *ranges])


def _is_number(name: str, names: Mapping[str, None], metrics: tuple[MetricPlugin, ...]) -> bool:
    """A known number, or one of a metric's own: "finetune_success.share"."""
    first, dot, _ = name.partition(".")
    return name in names or (bool(dot) and any(metric.name == first for metric in metrics))


def _goals(
    given: Mapping[str, At], at: At, metrics: tuple[MetricPlugin, ...], space: Space
) -> tuple[Goal, ...]:
    names = _names(metrics, space)
    found: list[Goal] = []
    for key in ("maximize", "minimize"):
        for item in given[key].items() if key in given else ():
            name = item.value
            if not isinstance(name, str) or not _is_number(name, names, metrics):
                item.say(f"unknown number {show(name)}{suggest(str(name), names)}")
            elif any(name == goal.name for goal in found):
                item.say(f"duplicate value {name!r}")
            else:
                found.append(Goal(name, key == "maximize"))
        if key in given and given[key].value == []:
            given[key].say(f"must have at least one number but is empty{suggest('', names)}")
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
        if not _is_number(name, names, metrics):
            at.say_key(name, f"unknown number {name!r}{suggest(name, names)}")
        elif bound is None:
            entry.say(f"must look like '>= 0.8' or '<= 0.1' but got {show(entry.node.plain())}")
        else:
            found.append(bound)
    return tuple(found)


def _say_unfit(search: Search, grid: Grid, given: Mapping[str, At], at: At) -> None:
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
    if search.settings.pruner != "none":
        last = grid.edits[-1]
        steps = f"{last.key}.steps"
        if last.kind != "finetune":
            given["pruner"].say("prunes at fewer steps: the last edit must be a fine-tune")
        elif all(dimension.name != steps for dimension in search.space.dimensions):
            given["pruner"].say(f"prunes at fewer steps: the space must have {steps}")


def _say_left_over(search: Search, grid: Grid, at: At) -> None:
    """Every axis of the file must have one value, or be searched, or have studies of its own."""
    searched = {dimension.name: dimension for dimension in search.space.dimensions}
    for axis in grid.axes:
        count, dimension = len(axis.values), searched.get(axis.name)
        if count == 1 or axis.name == "seed" or axis.name in search.for_each:
            continue
        head = axis.when[0] if axis.when else axis.name
        if dimension is None:
            places = "search.space" if axis.when else "search.space or search.for_each"
            at.say(f"{axis.name} has {count} values: put it into {places}, or give it one value")
        elif any(name != head for name, _ in dimension.when):
            at.say(
                f"{axis.name} has {count} values and is not searched everywhere (`when`): give it "
                f"the one value that it has elsewhere"
            )


def _say_impossible(search: Search, grid: Grid, at: At) -> None:
    """Problems that only whole points show, found at the ends of the space."""
    if at.problems:
        return
    seen: set[str] = set()
    for fixed in search.studies(grid):
        for point in search.space.within(fixed).corners():
            for problem in point_grid(grid, point).expansion.problems:
                if problem.what not in seen:
                    seen.add(problem.what)
                    shown = ", ".join(f"{name}: {show(value)}" for name, value in point.items())
                    at.say(f"{problem.what} (at {shown})")
