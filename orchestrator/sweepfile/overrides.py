"""Command-line overrides: `finetune.steps=[0,100]` changes a sweep before it is checked.

A path begins with a key of the file or with an edit ("unlearn", "finetune_2"), and goes on through
mappings and through plug-ins by name ("unlearn.esd.group"). What it sets is checked like the
file is, so a misspelt last part is reported, and mended, there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.config.yaml_tree import Node, read_yaml
from orchestrator.core.errors import Problem
from orchestrator.core.hints import nearest, suggest
from orchestrator.core.registry import find
from orchestrator.sweep.grid import HEADS
from orchestrator.sweep.trial import UnlearnSettings

_HERE = "command line: "
_OWN = (["concepts"], *([name] for name in UnlearnSettings.model_fields))


def is_origin(where: str) -> bool:
    """Whether a value stands on the command line."""
    return where.startswith(_HERE)


class _NoSuchPathError(Exception):
    pass


def apply(
    root: Node, overrides: Sequence[str], keys: Collection[str], problems: list[Problem]
) -> Node:
    """The file's tree with every override set; what cannot be set goes to `problems`."""
    for override in overrides:
        path, sign, text = override.partition("=")
        path = path.strip()
        where = f"{_HERE}{path or override}"
        if not sign or not path or not text.strip():
            what = f"must look like finetune.steps=[0,100] but got {override!r}"
            problems.append(Problem(what, where))
            continue
        value = read_yaml(text, None, problems, where)
        if value is None:
            continue
        leaf = replace(_unnumbered(value), origin=where)
        try:
            at = locate(root, path, keys)
            root = put(_opened(root, at), at, leaf)
        except _NoSuchPathError as error:
            problems.append(Problem(str(error), where))
    return root


def _opened(root: Node, path: Sequence[str | int]) -> Node:
    """With the methods of an unlearning under `method`, where what is set stands beside them."""
    if len(path) < 4 or path[0] != "edits" or path[3:4] not in _OWN:
        return root
    node = root.value["edits"].value[path[1]].value["unlearn"]
    if isinstance(node.value, dict) and {"method", "concepts", "order"} & node.value.keys():
        return root
    return put(root, path[:3], Node({"method": node}, node.line))


def _unnumbered(node: Node) -> Node:
    """The node without lines: they would be taken for the file's."""
    value: Any = node.value
    if isinstance(value, dict):
        value = {key: _unnumbered(child) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_unnumbered(child) for child in value]
    return Node(value)


def locate(root: Node, path: str, keys: Collection[str]) -> list[str | int]:
    """Where in the tree a path leads."""
    first, *rest = path.split(".")
    edits = _edits(root)
    if first in edits:
        kind = first.partition("_")[0]
        if kind == "unlearn":
            rest = _in_unlearning(root, edits[first], rest)
        elif kind == "merge" and rest[:1] == [HEADS[kind]]:
            rest = rest[1:]
        elif kind == "merge" and len(rest) == 2 and _is_short(root, edits[first], rest[0]):
            rest = [rest[0] if rest[1] == "source" else rest[1]]
        elif first.startswith("finetune") and len(rest) > 1 and rest[0] != "dataset":
            rest = ["dataset", *rest]
        return [*edits[first], *rest]
    if first == "search" and rest[:1] in (["space"], ["subject_to"]) and rest[1:]:
        return [first, rest[0], *_in_flat(root, rest[0], ".".join(rest[1:]))]
    alike = [name for name in edits if rest and name.partition("_")[0] == rest[0]]
    if first == "edits" and len(alike) > 1:
        raise _NoSuchPathError(f"{path!r} means several edits; name one: {', '.join(alike)}")
    if first in keys:
        return [first, *rest]
    raise _NoSuchPathError(f"unknown path{_suggestion(path, edits, keys)}")


def _is_short(root: Node, at: Sequence[str | int], name: str) -> bool:
    """Whether a merge is written `{lora: FILE, scale: …}`, with its settings beside its name."""
    node = root
    for part in at:
        node = node.value[part]
    there = node.value.get(name) if isinstance(node.value, dict) else None
    return there is not None and not isinstance(there.value, dict)


def _in_unlearning(root: Node, edit: Sequence[str | int], rest: list[str]) -> list[str]:
    """Methods stand right under `unlearn`, or under its `method` beside what else it is told."""
    node = root.value["edits"].value[edit[1]].value["unlearn"]
    has_method = isinstance(node.value, dict) and "method" in node.value
    if rest[:1] == ["method"]:
        rest = rest[1:]
    elif rest[:1] in _OWN:
        return rest
    return ["method", *rest] if has_method else rest


def _edits(root: Node) -> dict[str, list[str | int]]:
    """ "finetune_2" -> ["edits", 2, "finetune"], for every edit of the file."""
    found: dict[str, list[str | int]] = {}
    node = root.value.get("edits")
    items = node.value if node is not None and isinstance(node.value, list) else []
    counts: dict[str, int] = {}
    for index, item in enumerate(items):
        kind = next(iter(item.value), "") if isinstance(item.value, dict) else ""
        if kind in HEADS:
            counts[kind] = counts.get(kind, 0) + 1
            key = kind if counts[kind] == 1 else f"{kind}_{counts[kind]}"
            found[key] = ["edits", index, kind]
    return found


def _in_flat(root: Node, key: str, rest: str) -> list[str]:
    """A space's keys have dots in them: "finetune.steps.step" is "step" in "finetune.steps"."""
    search = root.value.get("search")
    block = search.value.get(key) if search is not None and isinstance(search.value, dict) else None
    known = block.value if block is not None and isinstance(block.value, dict) else {}
    inside = [n for n, node in known.items() if isinstance(node.value, dict)]
    name = max((n for n in inside if f"{rest}.".startswith(f"{n}.")), key=len, default=rest)
    return [name, *rest.removeprefix(name).split(".")[1:]]


def _suggestion(path: str, edits: Collection[str], keys: Collection[str]) -> str:
    """The nearest of the whole paths, or else of the beginnings."""
    whole = []
    for edit in edits:
        kind = edit.partition("_")[0]
        names = find("recipe", "finetune").Settings.model_fields if kind == "finetune" else {}
        whole += [f"{edit}.{name}" for name in (*names, HEADS[kind])]
    near = nearest(path, whole) if "." in path or path not in keys else ""
    first, _, rest = path.partition(".")
    tops = [*edits, *keys]
    head = nearest(first, tops)
    if head and rest:
        head = f"{head.removesuffix(chr(39) + '?')}.{rest}'?"
    return (head or near) + suggest("", tops)


def put(node: Node | None, path: Sequence[str | int], leaf: Node) -> Node:
    """The tree with `leaf` at the end of `path`; mappings on the way are made where missing.

    A text that is the path's next part is a plug-in without settings. In a list, the path goes
    through every plug-in of that name.
    """
    if not path:
        return leaf
    head, *rest = path
    if node is None or node.value is None:
        node = Node({}, node.line if node else None)
    value = node.value
    if isinstance(value, str) and value == head:
        value = {value: Node({}, node.line)}
    if isinstance(value, list):
        return replace(node, value=_put_in_list(value, path, leaf))
    if not isinstance(value, dict):
        raise _NoSuchPathError(f"{head!r} cannot be set inside {node.plain()!r}")
    return replace(node, value={**value, str(head): put(value.get(head), rest, leaf)})


def _put_in_list(items: list[Node], path: Sequence[str | int], leaf: Node) -> list[Node]:
    head, *rest = path
    if isinstance(head, int):
        return [*items[:head], put(items[head], rest, leaf), *items[head + 1 :]]
    names = [_name(item) for item in items]
    if head not in names:
        there = suggest(head, [name for name in names if name])
        raise _NoSuchPathError(f"unknown path: {head!r} is not in the sweep{there}")
    return [
        put(item, path, leaf) if name == head else item
        for name, item in zip(names, items, strict=True)
    ]


def _name(item: Node) -> str | None:
    """What plug-in an item of a list names."""
    if isinstance(item.value, str):
        return item.value
    return next(iter(item.value), None) if isinstance(item.value, dict) else None
