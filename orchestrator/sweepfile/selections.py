"""Reads `zip`, `exclude` and `include`: they speak of axes by their flat names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.config.fields import NOUNS, texts, value_of
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.concepts import joined
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import PluginKind
from orchestrator.core.registry import find, registry, unknown
from orchestrator.core.settings import Settings
from orchestrator.sweep.grid import EditAxes, Grid, Selection
from orchestrator.sweep.trial import UnlearnSettings
from orchestrator.sweepfile.axes import axis

ValueReader = Callable[[str, At], tuple[Any, ...]]
"""Reads the values that stand under a flat name."""


@dataclass(frozen=True)
class NamedSetting:
    """What a flat name such as "finetune.steps" or "unlearn.esd.group" stands for."""

    cls: type[Settings]
    name: str


def setting(grid: Grid, flat: str) -> NamedSetting | None:
    """The setting that a flat name means, whether or not the grid has it as an axis."""
    key, _, rest = flat.partition(".")
    edit = next((edit for edit in grid.edits if edit.key == key), None)
    if edit is None:
        return None
    label, _, name = rest.rpartition(".")
    plugins = registry(edit.plugin_kind)
    cls = plugins[label].Settings if label in plugins else None if label else own_settings(edit)
    return NamedSetting(cls, name) if cls is not None and name in cls.model_fields else None


def own_settings(edit: EditAxes) -> type[Settings] | None:
    """What an edit is told beside its plug-in, which has settings of its own."""
    if edit.kind == "finetune":
        return find("recipe", "finetune").Settings
    return UnlearnSettings if edit.kind == "unlearn" else None


def zips(at: At, grid: Grid) -> tuple[tuple[str, ...], ...]:
    """Groups of axes that move together: `[[finetune.learning_rate, finetune.steps]]`."""
    lengths = {name: {len(one.values) for one in axes} for name, axes in grid.axes_called.items()}
    taken: set[str] = set()
    if not isinstance(at.value, list):
        at.say(f"must be a list of lists of axis names but got {show(at.node.plain())}")
        return ()
    groups: list[tuple[str, ...]] = []
    for group in at.items():
        if not isinstance(group.value, list) or len(group.value) < 2:
            got = show(group.node.plain())
            group.say(f"must be a list of two axis names or more but got {got}")
            continue
        groups.append(texts(group))
        good = []
        for item in group.items():
            if not isinstance(item.value, str):
                continue
            if item.value not in lengths:
                item.say(f"unknown axis {item.value!r}{suggest(item.value, lengths)}")
            elif item.value in taken:
                item.say(f"{item.value!r} is zipped already")
            else:
                good.append(item.value)
        taken.update(good)
        if len({length for name in good for length in lengths[name]}) > 1:
            counts = [f"{n} has {' and '.join(map(str, sorted(lengths[n])))}" for n in good]
            group.say(f"zipped axes must have equally many values but {', '.join(counts)}")
    return tuple(groups)


def _selections(at: At, read: ValueReader) -> tuple[Selection, ...]:
    found = []
    for item in at.items():
        values = {}
        if isinstance(item.value, dict) and item.value:
            values = {name: read(name, item.key(name)) for name in item.value}
        else:
            item.say(f"must map axis names to values but got {show(item.node.plain())}")
        found.append(Selection(values, item.place))
    return tuple(found)


def exclude(at: At, grid: Grid) -> tuple[Selection, ...]:
    """Points to leave out; a list of values means any of them."""
    values = {
        name: [value for one in axes for value in one.values]
        for name, axes in grid.axes_called.items()
    }

    def read(flat: str, entry: At) -> tuple[Any, ...]:
        if flat not in values:
            entry.say(f"unknown axis {flat!r}{suggest(flat, values)}")
            return ()
        meant, found = setting(grid, flat), []
        for item in entry.items():
            before = len(item.problems)
            value = value_of(meant.cls, meant.name, item) if meant else item.node.plain()
            if meant is None and isinstance(value, list):  # concepts that are erased jointly
                value = joined(map(str, value))
            if value not in values[flat] and len(item.problems) == before:
                names = dict.fromkeys(v if isinstance(v, str) else show(v) for v in values[flat])
                asked = value if isinstance(value, str) else ""
                item.say(f"the axis has no value {show(value)}{suggest(asked, names)}")
            found.append(value)
        return tuple(found)

    return _selections(at, read)


def include(
    at: At,
    grid: Grid,
    concepts: Callable[[At], tuple[str, ...]],
    parts: Callable[[At], tuple[str, ...]],
    seeds: Callable[[At], Any],
) -> tuple[Selection, ...]:
    """Extra points; their values need not be on the axes, but are checked like them."""
    heads = {edit.head: edit for edit in grid.edits}
    of_edits = {f"{edit.key}.concepts" for edit in grid.edits if edit.kind == "unlearn"}

    def read(flat: str, entry: At) -> tuple[Any, ...]:
        if flat == "concept":
            return concepts(entry)
        if flat in of_edits:
            return parts(entry)
        if flat == "seed":
            return tuple(seeds(entry))
        if flat in heads:
            return labels(entry, heads[flat].plugin_kind)
        meant = setting(grid, flat)
        if meant is None:
            names = dict.fromkeys([*grid.axes_called, *reachable(grid)])
            entry.say(f"unknown axis {flat!r}{suggest(flat, names)}")
            return ()
        return axis(meant.cls, meant.name, entry)

    found = _selections(at, read)
    for item, selection in zip(at.items(), found, strict=True):
        _say_idle(item, selection, grid)
    return found


def labels(at: At, kind: PluginKind) -> tuple[str, ...]:
    """Names of plug-ins."""
    names = texts(at)
    plugins = registry(kind)
    for name in names:
        if name not in plugins:
            at.say(unknown(kind, name, NOUNS[kind]))
    return names


def reachable(grid: Grid) -> list[str]:
    """Flat names of every setting of the plug-ins that the sweep uses."""
    names = []
    for edit in grid.edits:
        for choice in edit.choices:
            fields = choice.plugin.Settings.model_fields
            names += [f"{edit.key}.{choice.label}.{field}" for field in fields]
        if own := own_settings(edit):
            names += [f"{edit.key}.{field}" for field in own.model_fields]
    return names


def _say_idle(at: At, selection: Selection, grid: Grid) -> None:
    """Report settings of plug-ins that the point does not use."""
    for edit in grid.edits:
        used = selection.values.get(edit.head, tuple(c.label for c in edit.choices))
        for flat in selection.values:
            key, _, rest = flat.partition(".")
            label, _, name = rest.rpartition(".")
            if key == edit.key and label and name and label not in used:
                at.say_key(flat, f"has no effect: {label!r} is not chosen by {edit.head}")
