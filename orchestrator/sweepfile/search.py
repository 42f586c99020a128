"""Reads the `search` block of a sweep file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from orchestrator.config.fields import fill, known, texts
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import MetricPlugin
from orchestrator.sweep.grid import Grid, point_grid
from orchestrator.sweep.search import (
    FOR_SEVERAL_GOALS,
    MEANS,
    NUMBERS,
    WORST,
    Aggregate,
    AggregateHow,
    Bound,
    Confirm,
    Defend,
    DefendSettings,
    Goal,
    Model,
    Search,
    SearchSettings,
)
from orchestrator.sweep.space import Range, Space
from orchestrator.sweepfile.space import read_space, say_same_name

OWN = ("maximize", "minimize", "subject_to", "space", "for_each", "aggregate", "defend", "confirm")
KIND_OF: Mapping[Model, str] = {"base": "base", "unlearned": "unlearn"}
"""What metrics call the models that bounds are relative to."""


def read_search(at: At, grid: Grid, metrics: tuple[MetricPlugin, ...]) -> Search | None:
    """The block, checked against the grid whose axes its space replaces."""
    before = len(at.problems)
    given = known(at, (*OWN, *SearchSettings.model_fields), required=("space",))
    if not isinstance(at.value, dict):
        return None
    for_each = _for_each(given["for_each"], grid) if "for_each" in given else ()
    aggregate = None
    if "aggregate" in given:
        aggregate, for_each = _aggregate(given["aggregate"], for_each, grid)
    held = (*for_each, *(aggregate.axes if aggregate else ()))
    space = read_space(given["space"], grid, for_each, held) if "space" in given else Space(())
    defend = None
    if "defend" in given:
        defend = _defend(given["defend"], grid, metrics, for_each, (*held, *_names_of(space)))
    plain = {name: value for name, value in given.items() if name not in OWN}
    settings = fill(SearchSettings, plain, at)
    confirm = Confirm()
    if "confirm" in given:
        inner = known(given["confirm"], tuple(Confirm.model_fields))
        confirm = fill(Confirm, inner, given["confirm"]) or confirm
    goals = _goals(given, at, metrics, space)
    levels: tuple[tuple[Bound, ...], ...] = ((),)
    if "subject_to" in given:
        levels = _levels(given["subject_to"], metrics, space)
    if len(at.problems) > before or settings is None:
        return None
    found = Search(
        goals,
        levels[0],
        space,
        for_each,
        settings,
        confirm,
        at.node.plain(),
        levels if len(levels) > 1 else (),
        aggregate,
        defend,
    )
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


def _aggregate(
    at: At, for_each: tuple[str, ...], grid: Grid
) -> tuple[Aggregate | None, tuple[str, ...]]:
    """`max`, which takes the axes of `for_each`, or `{max: concept}`; and what is left of those."""
    ways: tuple[AggregateHow, ...] = get_args(AggregateHow)
    by_name: dict[str, AggregateHow] = {way: way for way in ways}
    if isinstance(at.value, dict):
        given = known(at, ways)
        if len(given) != 1:
            at.say(f"must name one of {', '.join(ways)} but got {show(at.node.plain())}")
            return None, for_each
        [(how, inner)] = given.items()
        axes = _for_each(inner, grid)
        for axis in axes:
            if axis in for_each:
                inner.say(f"{axis} is named by `for_each`, which gives each value its own study")
        return Aggregate(by_name[how], axes), for_each
    if at.value not in by_name:
        at.say(
            f"must be one of {', '.join(ways)}, or {{max: [axes]}}, but got "
            f"{show(at.node.plain())}{suggest(str(at.value), ways)}"
        )
        return None, for_each
    if not for_each:
        at.say("has nothing to aggregate: name the axes in `for_each`, or write {max: [axes]}")
    return Aggregate(by_name[at.value], for_each), ()


def _names_of(space: Space) -> tuple[str, ...]:
    return tuple(dimension.name for dimension in space.dimensions)


def _defend(
    at: At,
    grid: Grid,
    metrics: tuple[MetricPlugin, ...],
    for_each: tuple[str, ...],
    taken: tuple[str, ...],
) -> Defend | None:
    """The outer search: a space of unlearners' settings, and bounds on what unlearning does."""
    before = len(at.problems)
    given = known(at, ("space", "subject_to", *DefendSettings.model_fields), required=("space",))
    if "space" not in given:
        return None
    space = read_space(given["space"], grid, for_each)
    unlearning = tuple(f"{edit.key}." for edit in grid.edits if edit.kind == "unlearn")
    for name in _names_of(space):
        if name in taken:
            given["space"].say_key(name, "is searched, aggregated or held fixed already")
        elif not name.startswith(unlearning):
            given["space"].say_key(
                name, "is no setting of an unlearner; it belongs in search.space"
            )
    bounds: tuple[Bound, ...] = ()
    if "subject_to" in given:
        bounds, *more = _levels(given["subject_to"], metrics, Space(()))
        if more:
            given["subject_to"].say("must have one bound a number")
    plain = {name: value for name, value in given.items() if name in DefendSettings.model_fields}
    settings = fill(DefendSettings, plain, at)
    if len(at.problems) > before or settings is None:
        return None
    if settings.sampler == "grid" and (loose := [d for d in space.dimensions if d.size is None]):
        at.say(f"'grid' needs lists, or ranges with a step, but {loose[0].name} has none")
    return Defend(space, bounds, settings)


def _names(metrics: tuple[MetricPlugin, ...], space: Space) -> dict[str, None]:
    """Numbers that every trial has."""
    ranges = [d.name for d in space.dimensions if isinstance(d, Range) and not d.when]
    own = NUMBERS if _has_primary(metrics) else ()
    return dict.fromkeys([*own, *(metric.name for metric in metrics), *ranges])


def _has_primary(metrics: tuple[MetricPlugin, ...]) -> bool:
    return any(metric.needs == "images" and metric.per_picture for metric in metrics)


def _is_number(name: str, names: Mapping[str, None], metrics: tuple[MetricPlugin, ...]) -> bool:
    """A known number, a role's mean, or a metric's own, "finetune_success.share"; of the final
    model, or of the unlearned one: "unlearned.retained".
    """
    if name in names or (name in MEANS and _has_primary(metrics)):
        return True
    plain = name.removeprefix("unlearned.")
    if plain != name and plain in MEANS and _has_primary(metrics):
        return True
    metric = _metric_of(plain, metrics)
    if plain != name:
        return metric is not None and "unlearn" in metric.of
    return metric is not None and "." in name


def _metric_of(name: str, metrics: tuple[MetricPlugin, ...]) -> MetricPlugin | None:
    first = name.partition(".")[0]
    return next((metric for metric in metrics if metric.name == first), None)


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


def _levels(
    at: At, metrics: tuple[MetricPlugin, ...], space: Space
) -> tuple[tuple[Bound, ...], ...]:
    """The sets of bounds, the loosest first: one more for each further bound of a list."""
    names = _names(metrics, space)
    if not isinstance(at.value, dict):
        at.say(f"must map numbers to bounds such as '>= 0.8' but got {show(at.node.plain())}")
        return ((),)
    found: dict[str, list[Bound]] = {}
    for name in at.value:
        entry = at.key(name)
        if not _is_number(name, names, metrics):
            at.say_key(name, f"unknown number {name!r}{suggest(name, names)}")
            continue
        read = [bound for item in entry.items() if (bound := _bound(name, item, metrics))]
        if entry.value == []:
            entry.say("must have at least one bound but is empty")
        _say_unlike(read, entry)
        found[name] = sorted(read, key=lambda b: b.value if b.at_least else -b.value)
    several = [name for name, bounds in found.items() if len(bounds) > 1]
    for name in several[1:]:
        at.key(name).say(f"only one number may have several bounds, and {several[0]} has")
    most = max((len(bounds) for bounds in found.values()), default=1)
    return tuple(
        tuple(bounds[min(level, len(bounds) - 1)] for bounds in found.values() if bounds)
        for level in range(max(most, 1))
    )


def _bound(name: str, at: At, metrics: tuple[MetricPlugin, ...]) -> Bound | None:
    bound = Bound.parse(name, at.value) if isinstance(at.value, str) else None
    if bound is None:
        got = show(at.node.plain())
        at.say(f"must look like '>= 0.8', '<= 0.1' or '>= 90% of base' but got {got}")
        return None
    if bound.of is not None:
        plain = name.removeprefix("unlearned.")
        metric = _metric_of(plain, metrics)
        has_it = plain in MEANS if metric is None else KIND_OF[bound.of] in metric.of
        if not has_it or bound.reference == name:
            at.say(f"{name} has no share of {bound.of}: it is no number of that model alone")
            return None
    return bound


def _say_unlike(bounds: Sequence[Bound], at: At) -> None:
    """Of several bounds one must be the loosest, which the search keeps."""
    if len({(bound.at_least, bound.of) for bound in bounds}) > 1:
        at.say("several bounds of a number must all be '>=' or all '<=', of the same model")
    elif len(set(bounds)) < len(bounds):
        at.say("has the same bound twice")


def _say_unfit(search: Search, grid: Grid, given: Mapping[str, At], at: At) -> None:
    """Samplers, pruners, aggregates and defences that cannot do what is asked."""
    if search.defend and (len(search.goals) > 1 or search.levels):
        given["defend"].say("goes with one number and one bound a number: it needs one worst case")
    unlearning = tuple(f"{edit.key}." for edit in grid.edits if edit.kind == "unlearn")
    axes = search.aggregate.axes if search.aggregate else ()
    if search.defend and (own := [axis for axis in axes if axis.startswith(unlearning)]):
        given["defend"].say(
            f"a defence is one unlearner, so {own[0]} cannot be aggregated: name it in `for_each`"
        )
    if search.aggregate and len(search.goals) > 1:
        given["aggregate"].say("several numbers have no largest; seek one")
    if search.aggregate and search.aggregate.how == "mean" and search.goals[0].name == WORST:
        given["aggregate"].say("a mean of worst concepts is of no one concept; use max")
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
    outer = search.defend.space.dimensions if search.defend else ()
    searched = {dimension.name: dimension for dimension in (*search.space.dimensions, *outer)}
    held = (*search.for_each, *(search.aggregate.axes if search.aggregate else ()))
    for axis in grid.axes:
        count, dimension = len(axis.values), searched.get(axis.name)
        if count == 1 or axis.name == "seed" or axis.name in held:
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
    for point in search.corners(grid):
        for problem in point_grid(grid, point).expansion.problems:
            if problem.what not in seen:
                seen.add(problem.what)
                shown = ", ".join(f"{name}: {show(value)}" for name, value in point.items())
                at.say(f"{problem.what} (at {shown})")
