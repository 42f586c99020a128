"""Reads what a sweep file says in many places: mappings of known keys, plug-ins, axes of values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.config.checks import S, build, check, is_list_field, missing
from orchestrator.config.yaml_tree import At, Node, show
from orchestrator.core.chosen import chosen_kind
from orchestrator.core.hints import nearest, suggest
from orchestrator.core.plugin import Plugin, PluginKind
from orchestrator.core.redact import has_credentials
from orchestrator.core.registry import registry, unknown
from orchestrator.core.settings import Settings

NOUNS: dict[PluginKind, str] = {
    "base": "base",
    "unlearner": "unlearner",
    "dataset": "data set",
    "update": "update",
    "evaluation": "evaluation set",
    "metric": "metric",
    "recipe": "recipe",
    "executor": "executor",
}


def known(at: At, allowed: Collection[str], required: Iterable[str] = ()) -> dict[str, At]:
    """The entries of a mapping; unknown and missing keys are reported."""
    if not isinstance(at.value, dict):
        at.say(f"must be a mapping but got {show(at.node.plain())}{suggest('', list(allowed))}")
        return {}
    hints = []
    for name in at.value:
        if name not in allowed:
            hints.append(nearest(name, list(allowed)))
            at.say_key(name, f"unknown key{suggest(name, list(allowed))}")
    for name in required:
        is_misspelt = any(repr(name) in hint for hint in hints)
        if name not in at.value and not is_misspelt:
            at.say(f"missing key {name!r}")
    return {name: at.key(name) for name in at.value if name in allowed}


def text(at: At) -> str | None:
    """A text that is not empty."""
    if isinstance(at.value, str) and at.value.strip():
        return at.value
    is_scalar = isinstance(at.value, int | float) and not isinstance(at.value, bool)
    hint = f"; quote it: '{at.value}'" if is_scalar else ""
    at.say(f"must be text but got {show(at.node.plain())}{hint}")
    return None


def texts(at: At) -> tuple[str, ...]:
    """One text or a list of texts, each once."""
    if not at.items():
        at.say("must have at least one value but is empty")
    found: list[str] = []
    for item in at.items():
        value = text(item)
        if value in found:
            item.say(f"duplicate value {show(value)}")
        elif value is not None:
            found.append(value)
    return tuple(found)


def flag(at: At) -> bool:
    """True or false."""
    if not isinstance(at.value, bool):
        at.say(f"must be true or false but got {show(at.node.plain())}")
    return at.value is True


def named(at: At, kind: PluginKind) -> tuple[type[Plugin], At] | None:
    """The plug-in that `esd` or `esd: {…}` names, with the mapping of its settings."""
    plugins = registry(kind)
    if isinstance(at.value, str):
        name, settings = at.value, at
    elif isinstance(at.value, dict) and len(at.value) == 1:
        name = next(iter(at.value))
        settings = at.key(name)
    else:
        at.say(_not_one(at, kind, plugins))
        return None
    if settings is at or settings.value is None:
        settings = replace(settings, node=Node({}, settings.node.line))
    if name in plugins:
        return plugins[name], settings
    at.say(unknown(kind, name, NOUNS[kind]))
    return None


def _not_one(at: At, kind: PluginKind, plugins: Collection[str]) -> str:
    got = at.value
    if not isinstance(got, dict) or not got:
        allowed = suggest("", list(plugins))
        return f"must be the name of one {NOUNS[kind]} but got {show(at.node.plain())}{allowed}"
    here = [name for name in got if name in plugins]
    if len(here) == 1:
        others = ", ".join(repr(name) for name in got if name not in here)
        return f"must name one {NOUNS[kind]}; indent {others} to be under {here[0]!r}"
    names = ", ".join(got)
    hint = "" if kind in ("base", "executor") else "; write a list to have each"
    return f"must name one {NOUNS[kind]} but names {len(got)} ({names}){hint}"


def single(at: At, kind: PluginKind) -> tuple[type[Plugin], Settings] | None:
    """A plug-in whose settings have one value each."""
    found = named(at, kind)
    if found is None:
        return None
    plugin, settings = found
    given = known(settings, plugin.Settings.model_fields)
    made = fill(plugin.Settings, given, settings)
    return None if made is None else (plugin, made)


def fill(cls: type[S], given: Mapping[str, At], at: At) -> S | None:
    """Settings of one value each; `at` is where missing ones are missed."""
    before = len(at.problems)
    values = {}
    for name, value in given.items():
        if isinstance(value.value, list) and not is_list_field(cls, name):
            got = show(value.node.plain())
            value.say(f"must be one value but got {got}; only the settings of edits are axes")
        else:
            values[name] = value_of(cls, name, value)
    say_missing(cls, given, at)
    if len(at.problems) > before:
        return None
    made, faults = build(cls, values)
    for fault in faults:
        at.say(fault)
    return made


def say_missing(cls: type[Settings], given: Collection[str], at: At) -> None:
    for name in missing(cls, given):
        about = cls.model_fields[name].description
        at.say(f"missing key {name!r}" + (f" ({about})" if about else ""))


def value_of(cls: type[Settings], name: str, at: At) -> Any:
    """One value of a setting; a plug-in as JSON, with the settings that it was given."""
    plain = at.node.plain()
    if kind := chosen_kind(cls, name):
        found = single(at, kind)
        if found is None:
            return plain
        plain = {found[0].name: found[1].model_dump(mode="json", exclude_unset=True)}
    value, faults = check(cls, name, plain)
    for fault in faults:
        inner = at
        for part in fault.inside:
            inner = inner.key(part) if isinstance(part, str) else inner.items()[part]
        inner.say(fault.what)
    return value


def refuse_credentials(at: At) -> None:
    """Report every URL below this place that carries credentials, without showing them."""
    if isinstance(at.value, dict):
        for key in at.value:
            refuse_credentials(at.key(key))
    elif isinstance(at.value, list):
        for item in at.items():
            refuse_credentials(item)
    elif isinstance(at.value, str) and has_credentials(at.value):
        at.say(
            "carries a password or a token in its URL; leave it out: MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, PGPASSFILE and AWS's variables belong into the environment "
            "of the machines that need them"
        )
