"""The `evaluate` block: what is drawn and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import cast

from orchestrator.config.fields import fill, flag, known, single, texts
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import Asked, EvaluationPlugin, MetricPlugin
from orchestrator.core.registry import find, registry
from orchestrator.sweep.grid import BaseUnknownError, Grid
from orchestrator.sweep.sweep import Evaluate
from orchestrator.sweepfile.concepts import concepts


def is_given(entries: Mapping[str, At], key: str) -> bool:
    """Whether a key whose default is null has a value."""
    return key in entries and entries[key].value is not None


def read_evaluate(at: At, grid: Grid | None) -> Evaluate | None:
    recipe = find("recipe", "sample")
    own = ("metrics", "set", "retain", "prompts", "controls", "pictures")
    start = len(at.problems)
    given = known(at, (*own, *recipe.Settings.model_fields), required=("metrics",))
    sample = fill(recipe.Settings, {k: v for k, v in given.items() if k not in own}, at)
    named = is_given(given, "set") and given["set"].value != "templates"
    sets = _sets(given["set"], given, grid) if named else _usual(given, grid)
    controls = flag(given["controls"]) if "controls" in given else True
    draws = "pictures" not in given or _draws(given["pictures"])
    found = Evaluate((), recipe(sample), sets, controls, draws) if sample and sets else None
    is_sound = len(at.problems) == start
    asked: list[Asked] = []
    with suppress(BaseUnknownError):
        if grid and found and is_sound:
            asked = _asked(given.get("set", given.get("prompts", at)), found, grid)
    metrics = _metrics(given["metrics"], grid, asked) if "metrics" in given else ()
    for metric in metrics if not draws else ():
        if metric.needs == "images" or metric.reference:
            given["metrics"].say(
                f"metric {metric.name!r} scores pictures but evaluate.pictures is none: none are "
                "drawn; leave one of them out"
            )
    return replace(found, metrics=metrics) if found and metrics else None


def _draws(at: At) -> bool:
    if at.value not in ("all", "none"):
        at.say(f"must be all or none but got {show(at.node.plain())}")
    return bool(at.value != "none")


def _usual(given: Mapping[str, At], grid: Grid | None) -> tuple[EvaluationPlugin, ...]:
    """The set that the base asks where none is named, or `templates`, which `prompts` are of; the
    block's keys `retain` and `prompts` are its settings.
    """
    retain = prompts = None
    if is_given(given, "retain"):
        kept = given["retain"]
        retain = concepts(kept, grid.base if grid else None) if kept.value != [] else ()
        if grid is not None:
            _refuse_erased(kept, grid)
    if is_given(given, "prompts"):
        prompts = texts(given["prompts"])
        before: dict[str, str] = {}
        for item in given["prompts"].items():
            if isinstance(item.value, str) and "{concept}" not in item.value:
                item.say(f"must contain {{concept}} but got {show(item.value)}")
            elif isinstance(item.value, str) and grid is not None:
                read = grid.base.as_read(item.value)
                if (other := before.setdefault(read, item.value)) != item.value:
                    item.say(f"is the same to the model as {other!r}, which stands before")
        if any("{concept}" not in prompt for prompt in prompts) or not prompts:
            return ()  # it was said
    usual = grid.base.evaluation if grid else "templates"
    is_named = is_given(given, "set") or prompts is not None
    plugin = find("evaluation", "templates" if is_named else usual)
    own = {"retain": retain, "prompts": prompts}
    settings = plugin.Settings(**{name: value for name, value in own.items() if value is not None})
    return (cast("EvaluationPlugin", plugin(settings)),)


def _sets(at: At, given: Mapping[str, At], grid: Grid | None) -> tuple[EvaluationPlugin, ...]:
    for key in ("retain", "prompts"):
        if is_given(given, key):
            inside = f"{{templates: {{{key}: …}}}}"
            given[key].say(f"is of the set templates and cannot stand beside `set`; write {inside}")
    if not at.items():
        at.say(f"must have at least one set but is empty{suggest('', registry('evaluation'))}")
    found: list[EvaluationPlugin] = []
    for item in at.items():
        pair = single(item, "evaluation")
        if pair is None:
            continue
        one = cast("EvaluationPlugin", pair[0](pair[1]))
        if one in found:
            item.say("the same set stands before")
        if grid is not None:
            with suppress(BaseUnknownError):
                for erased in grid.all_sets():
                    for what in one.problems_of(grid.base, erased):
                        item.say(what)
        found.append(one)
    return tuple(found)


def _refuse_erased(at: At, grid: Grid) -> None:
    erased = {grid.base.as_read(concept): concept for concept in grid.all_concepts()}
    for item in at.items():
        if isinstance(item.value, str) and (read := grid.base.as_read(item.value)) in erased:
            same = "" if erased[read] == item.value else f" (as {erased[read]!r})"
            item.say(f"{item.value!r} is erased by this sweep{same} and cannot be retained too")


def _asked(at: At, evaluate: Evaluate, grid: Grid) -> list[Asked]:
    """What is drawn, in numbers; of each set the first prompt that is not read to its end."""
    base, found = grid.base, list[Asked]()
    for erased in grid.known_sets():
        try:
            probes = evaluate.probes(base, erased)
        except ResurgeError as error:
            at.say(str(error))
            continue
        prompts = [probe.prompt for probe in probes if not probe.may_be_cut]
        if why := next(filter(None, map(base.unread, prompts)), ""):
            at.say(why)
        found.append(evaluate.asked_of(probes))
    return found


def _metrics(at: At, grid: Grid | None, asked: Sequence[Asked]) -> tuple[MetricPlugin, ...]:
    if not at.items():
        at.say(f"must have at least one metric but is empty{suggest('', registry('metric'))}")
    found: list[MetricPlugin] = []
    for item in at.items():
        pair = single(item, "metric")
        if pair is None:
            continue
        metric = cast("MetricPlugin", pair[0](pair[1]))
        if any(metric.name == other.name for other in found):
            item.say(f"duplicate value: the metric {metric.name!r} stands before")
        if grid is not None:
            with suppress(BaseUnknownError):
                misfits = [metric.problems_of(grid.base, erased) for erased in grid.all_sets()]
                misfits += [metric.problems_with(one) for one in asked]
                for what in chain.from_iterable(misfits):
                    item.say(what)
        found.append(metric)
    return tuple(found)
