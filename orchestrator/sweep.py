"""Sweep: a YAML file as validated, frozen values; everything wrong with it in one report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from orchestrator import overrides as command_line
from orchestrator.asked import all_asked
from orchestrator.errors import Problem, SweepError
from orchestrator.grid import EditAxes, Grid
from orchestrator.plugin import (
    Asked,
    BasePlugin,
    MetricPlugin,
    Plugin,
    Settings,
    find,
    nearest,
    registry,
    suggest,
)
from orchestrator.read_choices import fill, known, single, text, texts
from orchestrator.read_grid import concepts, read_grid
from orchestrator.read_search import read_search
from orchestrator.redact import redact, refuse_credentials
from orchestrator.resources import Resources
from orchestrator.search_settings import Search
from orchestrator.yaml_file import At, read_yaml, show

Keep = Literal["unlearned", "finetuned", "checkpoints"]

REQUIRED = ("name", "concept", "edits", "evaluate")
KEYS = (
    "name",
    "base",
    "concept",
    "edits",
    "evaluate",
    "seeds",
    "keep",
    "include",
    "exclude",
    "zip",
    "search",
    "resources",
    "store",
    "mlflow",
)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Evaluate:
    """How a model is judged. `sample` is the recipe that makes the images."""

    metrics: tuple[MetricPlugin, ...]
    sample: Plugin
    retain: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None
    controls: bool = True

    def retained(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """The concepts whose health is watched: the file's, or the base's own."""
        return base.retained(concept) if self.retain is None else self.retain

    def prompts_for(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """The prompts that ask for a concept: the file's templates, or the base's own."""
        if self.prompts is None:
            return base.prompts(concept)
        return tuple(template.replace("{concept}", concept) for template in self.prompts)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A validated sweep. Two sweeps are equal when they mean the same, however they are written.

    `grid` is the part that spans the trials; `search` replaces its axes by a space; `source` is the
    file's text without credentials.
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

    @property
    def base(self) -> BasePlugin:
        """The model to begin from."""
        return self.grid.base

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts to erase, each on its own."""
        return self.grid.concepts

    @property
    def edits(self) -> tuple[EditAxes, ...]:
        """What is done to the model, in order."""
        return self.grid.edits

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the edits."""
        return self.grid.seeds

    def canonical(self) -> dict[str, Any]:
        """The sweep as JSON values, overrides applied; `parse` of its JSON gives it again."""
        grid = self.grid
        found = {
            "name": self.name,
            "base": _named(grid.base),
            "concept": list(grid.concepts),
            "edits": [_canonical_edit(edit) for edit in grid.edits],
            "evaluate": _canonical_evaluate(self.evaluate),
            "seeds": list(grid.seeds),
            "keep": list(self.keep),
            "zip": [list(names) for names in grid.zips] or None,
            "exclude": [_lists(point.values) for point in grid.exclude] or None,
            "include": [_lists(point.values) for point in grid.include] or None,
            "search": self.search.canonical() if self.search else None,
            "resources": _canonical_resources(self.resources),
            "store": self.store,
            "mlflow": self.mlflow,
        }
        return _without_none(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sweep) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return hash((self.name, self.concepts, self.seeds))


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read, override and check a sweep file.

    Raises:
        SweepError: with everything that is wrong in it.
    """
    file = str(path)
    try:
        return parse(path.read_bytes().decode("utf-8-sig"), file, overrides)
    except FileNotFoundError:
        what = f"there is no such file{_siblings(path)}"
    except IsADirectoryError:
        what = "must be a sweep file but is a folder"
    except UnicodeDecodeError as error:
        what = f"must be UTF-8 text but byte {error.start} is not"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    raise SweepError([Problem(what, "", file)]) from None


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    return suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")][:20])


def parse(text: str, file: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Check a sweep file's text; `file` is what errors call it.

    Raises:
        SweepError: with everything that is wrong in it.
    """
    problems: list[Problem] = []
    sweep = None
    root = read_yaml(text, file, problems)
    if root is not None and isinstance(root.value, dict):
        root = command_line.apply(root, overrides, KEYS, problems)
        at = At(root, "", file, problems)
        refuse_credentials(at)
        sweep = _sweep(at, redact(text))
    elif root is not None:
        got = f"but got {show(root.plain())}"
        what = "the file is empty" if root.value is None else f"must map keys to values {got}"
        problems.append(Problem(what, "", file, root.line))
    if sweep is None or problems:
        unique = dict.fromkeys(problems)
        raise SweepError(sorted(unique, key=lambda problem: problem.line or 0))
    return sweep


def _sweep(root: At, source: str) -> Sweep | None:
    top = known(root, KEYS, REQUIRED)
    grid = read_grid(root, top)
    name = _name(top["name"]) if "name" in top else None
    evaluate = _evaluate(top["evaluate"], grid) if "evaluate" in top else None
    keep: tuple[Keep, ...] = _keep(top["keep"]) if "keep" in top else ("unlearned",)
    resources = _resources(top["resources"]) if "resources" in top else Resources()
    store, mlflow = (text(top[k]) if _is_given(top, k) else None for k in ("store", "mlflow"))
    search = None
    if "search" in top and grid and evaluate:
        for key in ("include", "exclude", "zip"):
            if key in top:
                top[key].say("cannot stand beside `search`, whose space replaces the axes")
        search = read_search(top["search"], grid, evaluate.metrics)
    if not (name and grid and evaluate and resources):
        return None
    return Sweep(name, grid, evaluate, keep, resources, store, mlflow, source, search)


def _name(at: At) -> str | None:
    name = text(at)
    if name is not None and not _NAME.fullmatch(name):
        at.say(
            "becomes a folder's name and must be 1 to 80 letters, digits, '.', '_' or '-', "
            f"not beginning with '.' or '-', but got {show(name)}"
        )
    return name


def _is_given(entries: Mapping[str, At], key: str) -> bool:
    """Whether a key whose default is null has a value."""
    return key in entries and entries[key].value is not None


def _evaluate(at: At, grid: Grid | None) -> Evaluate | None:
    recipe = find("recipe", "sample")
    own = ("metrics", "retain", "prompts", "controls")
    start = len(at.problems)
    given = known(at, (*own, *recipe.Settings.model_fields), required=("metrics",))
    sample = fill(recipe.Settings, {k: v for k, v in given.items() if k not in own}, at)
    retain = _retain(given["retain"], grid) if _is_given(given, "retain") else None
    prompts = _prompts(given["prompts"]) if _is_given(given, "prompts") else None
    controls = _flag(given["controls"]) if "controls" in given else True
    found = Evaluate((), recipe(sample), retain, prompts, controls) if sample else None
    is_sound = len(at.problems) == start
    asked = all_asked(grid, found) if grid and found and is_sound else []
    metrics = _metrics(given["metrics"], grid, asked) if "metrics" in given else ()
    return replace(found, metrics=metrics) if found and metrics else None


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
        for what in _misfits(metric, grid, asked) if grid else ():
            item.say(what)
        found.append(metric)
    return tuple(found)


def _misfits(metric: MetricPlugin, grid: Grid, asked: Sequence[Asked]) -> Iterator[str]:
    """Why a metric cannot judge what this sweep erases, or what it asks for beside it."""
    for concept in grid.all_concepts():
        yield from metric.problems(grid.base, concept)
    for one in asked:
        yield from metric.problems_with(one)


def _retain(at: At, grid: Grid | None) -> tuple[str, ...]:
    if at.value == []:
        return ()
    found = concepts(at, grid.base.concepts() if grid else None)
    erased = grid.all_concepts() if grid else ()
    for item in at.items():
        if item.value in erased:
            item.say(f"{item.value!r} is erased by this sweep and cannot be retained too")
    return found


def _prompts(at: At) -> tuple[str, ...]:
    """Templates in which {concept} stands for the concept."""
    found = texts(at)
    for item in at.items():
        if isinstance(item.value, str) and "{concept}" not in item.value:
            item.say(f"must contain {{concept}} but got {show(item.value)}")
    return found


def _flag(at: At) -> bool:
    if not isinstance(at.value, bool):
        at.say(f"must be true or false but got {show(at.node.plain())}")
    return bool(at.value)


def _keep(at: At) -> tuple[Keep, ...]:
    if at.value == []:
        return ()
    allowed = get_args(Keep)
    for item in at.items():
        if isinstance(item.value, str) and item.value not in allowed:
            hint = nearest(item.value, list(allowed))
            item.say(f"must be one of {', '.join(allowed)} but got {item.value!r}{hint}")
    return cast("tuple[Keep, ...]", texts(at))


def _resources(at: At) -> Resources | None:
    fields = [name for name in Resources.model_fields if name != "executor_settings"]
    given = known(at, fields)
    executor = single(given.pop("executor"), "executor") if "executor" in given else None
    made = fill(Resources, given, at)
    if made is None or executor is None:
        return cast("Resources | None", made)
    plugin, settings = executor
    chosen = {"executor": plugin.name, "executor_settings": _given(settings)}
    return cast("Resources", made.model_copy(update=chosen))


def _given(settings: Settings) -> dict[str, Any]:
    """The settings that were set, as JSON values."""
    return settings.model_dump(mode="json", exclude_unset=True)


def _named(plugin: Plugin) -> dict[str, Any]:
    return {plugin.name: _given(plugin.settings)}


def _lists(values: Mapping[str, tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(some) for name, some in values.items()}


def _canonical_edit(edit: EditAxes) -> dict[str, Any]:
    choices = [{choice.label: _lists(choice.settings)} for choice in edit.choices]
    if edit.kind == "unlearn":
        return {"unlearn": choices}
    return {"finetune": {"dataset": choices, **_lists(edit.settings)}}


def _canonical_evaluate(evaluate: Evaluate) -> dict[str, Any]:
    return {
        "metrics": [_named(metric) for metric in evaluate.metrics],
        **_given(evaluate.sample.settings),
        "retain": None if evaluate.retain is None else list(evaluate.retain),
        "prompts": None if evaluate.prompts is None else list(evaluate.prompts),
        "controls": evaluate.controls,
    }


def _canonical_resources(resources: Resources) -> dict[str, Any]:
    found = resources.model_dump(mode="json", exclude={"executor_settings"})
    if resources.executor_settings:
        found["executor"] = {resources.executor: resources.executor_settings}
    return found


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
