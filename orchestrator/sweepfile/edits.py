"""Reads the edits of a sweep file: what is done to a model, and over which values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from orchestrator.config.fields import known
from orchestrator.config.yaml_tree import At, Node, show
from orchestrator.core.hints import nearest
from orchestrator.core.registry import find, registry
from orchestrator.sweep.grid import CHOSEN, EditAxes
from orchestrator.sweep.trial import EditKind, UnlearnSettings
from orchestrator.sweepfile.axes import all_plugin_axes, axis

KINDS: tuple[EditKind, ...] = get_args(EditKind)
ALWAYS_SHOWN = ("adapter", "learning_rate", "steps")
"""Fine-tuning settings that every trial names, given or not."""


def edits(
    at: At, searched: Mapping[str, At], read_sets: Callable[[At], tuple[str, ...]]
) -> tuple[EditAxes, ...]:
    """The list of edits, in the order in which they are applied.

    `searched` is a search's space: a data set that it chooses need not be named here. `read_sets`
    gives the names of what an unlearning erases.
    """
    if not isinstance(at.value, list):
        at.say("must be a list of edits ('- unlearn: …', '- finetune: …' and '- merge: …')")
        return ()
    if not at.value:
        at.say("must have at least one edit but is empty")
    found: list[EditAxes] = []
    counts = dict.fromkeys(KINDS, 0)
    for item in at.items():
        for kind in _kinds(item):
            counts[kind] += 1
            key = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
            inner = item.key(kind)
            if kind == "unlearn":
                found.append(_unlearn(key, inner, read_sets))
            elif kind == "finetune":
                found.append(_finetune(key, inner, searched.get(f"{key}.dataset")))
            else:
                inner = replace(inner, node=spelt_out(inner.node))
                choices = all_plugin_axes(inner, CHOSEN[kind])
                found.append(EditAxes(key, kind, choices, place=inner.place))
    return tuple(found)


def _kinds(at: At) -> list[EditKind]:
    """The one edit that an item names; of a wrong item those that can be looked at as well."""
    got = at.value
    if not isinstance(got, dict) or not got:
        wanted = "'unlearn: …', 'finetune: …' or 'merge: …'"
        at.say(f"must be {wanted} but got {show(at.node.plain())}{_hint(got)}")
        return []
    named = [kind for kind in KINDS if kind in got]
    others = [name for name in got if name not in named]
    if len(named) == 1 and others and got[named[0]].value is None:
        at.say(f"indent {', '.join(map(show, others))} to be under {named[0]!r}")
        return []
    if len(got) > 1:
        at.say(f"must be one edit but names {len(got)} ({', '.join(got)}); begin each with '-'")
    for name in others:
        hint = nearest(name, list(KINDS)) or _hint(name)
        at.say_key(name, f"unknown edit {show(name)}{hint} (allowed: {', '.join(KINDS)})")
    return named


def _hint(got: object) -> str:
    if not isinstance(got, str):
        return ""
    if got in registry("unlearner"):
        return f"; did you mean 'unlearn: {got}'?"
    if got in registry("update"):
        return f"; did you mean 'merge: {{{got}: FILE}}'?"
    if got in registry("dataset"):
        return f"; did you mean 'finetune: {{dataset: {got}}}'?"
    return ""


def spelt_out(node: Node) -> Node:
    """`{lora: FILE, scale: …}` as `{lora: {source: FILE, scale: …}}`, also in a list."""
    if isinstance(node.value, list):
        return replace(node, value=[spelt_out(item) for item in node.value])
    if not isinstance(node.value, dict):
        return node
    named = [name for name in node.value if name in registry("update")]
    if len(named) != 1 or isinstance(node.value[named[0]].value, dict):
        return node
    (name,) = named
    settings = {"source": node.value[name]}
    settings |= {other: value for other, value in node.value.items() if other != name}
    return replace(node, value={name: replace(node, value=settings)})


def _unlearn(key: str, at: At, read_sets: Callable[[At], tuple[str, ...]]) -> EditAxes:
    """Methods; or `method`, or one method's name, beside what the edit itself is told."""
    own = ("concepts", *UnlearnSettings.model_fields)
    if not isinstance(at.value, dict) or not any(name in at.value for name in (*own, "method")):
        return EditAxes(key, "unlearn", all_plugin_axes(at, "unlearner"), place=at.place)
    if "method" in at.value:
        given = known(at, ("method", *own))
        methods = all_plugin_axes(given["method"], "unlearner")
    else:
        given = {name: at.key(name) for name in own if name in at.value}
        rest = {name: node for name, node in at.value.items() if name not in own}
        methods = all_plugin_axes(replace(at, node=replace(at.node, value=rest)), "unlearner")
    settings = {
        name: axis(UnlearnSettings, name, value)
        for name, value in given.items()
        if name in UnlearnSettings.model_fields
    }
    if "concepts" in given:
        settings = {"concepts": read_sets(given["concepts"]), **settings}
    return EditAxes(key, "unlearn", methods, settings, at.place)


def _finetune(key: str, at: At, searched: At | None) -> EditAxes:
    """`dataset` chooses the data; the other keys are the fine-tuning recipe's settings."""
    cls = find("recipe", "finetune").Settings
    if at.value is None and searched is not None:
        at = replace(at, node=Node({}, at.node.line))
    required = () if searched is not None else ("dataset",)
    given = known(at, ("dataset", *cls.model_fields), required=required)
    named = given.pop("dataset", searched)
    datasets = all_plugin_axes(named, "dataset") if named is not None else ()
    defaults = cls().full()
    settings = {name: (defaults[name],) for name in ALWAYS_SHOWN if name not in given}
    settings |= {name: axis(cls, name, value) for name, value in given.items()}
    return EditAxes(key, "finetune", datasets, settings, at.place)
