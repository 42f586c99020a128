"""Plug-ins whose settings are axes: any list of values is one."""

from __future__ import annotations

from typing import Any

from orchestrator.config.checks import check, is_list_field
from orchestrator.config.fields import NOUNS, known, named, say_missing, value_of
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.plugin import PluginKind
from orchestrator.core.settings import Settings
from orchestrator.sweep.grid import PluginAxes


def plugin_axes(at: At, kind: PluginKind) -> PluginAxes | None:
    """A plug-in whose settings are axes."""
    found = named(at, kind)
    if found is None:
        return None
    plugin, settings = found
    given = known(settings, plugin.Settings.model_fields)
    values = {name: axis(plugin.Settings, name, value) for name, value in given.items()}
    say_missing(plugin.Settings, given, settings)
    return PluginAxes(plugin, values, settings.place)


def all_plugin_axes(at: At, kind: PluginKind) -> tuple[PluginAxes, ...]:
    """One plug-in or a list of them; the list is an axis."""
    if not at.items():
        at.say(f"must have at least one {NOUNS[kind]} but is empty")
    found: list[PluginAxes] = []
    for item in at.items():
        made = plugin_axes(item, kind)
        if made in found:
            item.say(f"duplicate value: {made.label!r} with the same settings stands before")
        elif made is not None:
            found.append(made)
    return tuple(found)


def axis(cls: type[Settings], name: str, at: At) -> tuple[Any, ...]:
    """The values to try of a setting: a list, or one value.

    Where one value is itself a list, a list with lists in it is the axis, and one of values that
    are each whole by themselves, such as a setting's words.
    """
    items = at.items() if isinstance(at.value, list) else []
    if is_list_field(cls, name) and not _are_values(cls, name, items):
        return (value_of(cls, name, at),)
    if not isinstance(at.value, list):
        return (value_of(cls, name, at),)
    if not items:
        at.say("must have at least one value but is empty")
    values: list[Any] = []
    for item in items:
        value = value_of(cls, name, item)
        if value in values:
            item.say(f"duplicate value {show(value)}")
        values.append(value)
    return tuple(values)


def _are_values(cls: type[Settings], name: str, items: list[At]) -> bool:
    if any(isinstance(item.value, list) for item in items):
        return True
    return bool(items) and not any(check(cls, name, item.node.plain())[1] for item in items)
