"""Mutations of JSON-like trees: swap, delete, double, rename, another type, odd values."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[Any, ...]
WAYS = [
    "put",
    "put",
    "put",
    "put",
    "nudge",
    "nudge",
    "delete",
    "double",
    "swap",
    "rename",
    "wrap",
    "add",
    "lift",
]
"""What is done to a value, the common ones more often."""

TEXTS = (
    "", " ", "\t", "\n", "[/b]", "[/]", "[red]", "[link=x]y", "\\[", "]]", "{}", "{0}", "{x}",
    "%s", "$HOME", "~", "~nobody/x", "~root", "/", "/dev/full", "/dev/null", "/proc/self/mem",
    "..", "../..", ".", "a/b", "\x00", "\x1b[31m", "\u2028", "\ufeff", "\ud7ff", "é", "日本", "🐈",
    "e\u0301", "star\u200b", "Star", "star ", "x" * 300, "x" * 5000, "null", "true", "1", "1e400",
    "-", "<<", "*", "&a", "!!int", "nan", ".inf", "0x", "file:///etc/passwd", "sqlite:///x.db",
    "journal:///x", "mlflow", "None", "__class__", "__init__", "self", "model_config", "preset",
    "seed", "no", "shapes", "esd", "uce", "related", "folder", "parquet", "tiny",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 255, 256, 2**31, 2**31 - 1, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 10**400,
    -(2**63) - 1, 0.0, -0.0, 0.5, 1.5, 1e-300, 5e-324, 1e300, 1e308, float("inf"), float("-inf"),
    float("nan"), 1e21, 123456789.125,
)  # fmt: skip
PLAIN = (None, True, False, [], {}, [[]], [None], {"": None}, [{}], {"a": {"b": {"c": 1}}})


def odd(rng: random.Random) -> Any:
    """A value that nobody expects."""
    kind = rng.choice((TEXTS, TEXTS, NUMBERS, NUMBERS, PLAIN))
    return copy.deepcopy(rng.choice(kind))


def paths(tree: Any, at: Path = ()) -> Iterator[Path]:
    """Where every value of the tree is."""
    yield at
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from paths(value, (*at, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from paths(value, (*at, i))


def value_at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def mutated(tree: Any, rng: random.Random, value: Callable[[random.Random], Any] = odd) -> Any:
    """A copy with one thing changed; `value` makes what is put somewhere."""
    tree = copy.deepcopy(tree)
    places = [path for path in paths(tree) if path]
    if not places:
        return value(rng)
    path = rng.choice(places)
    parent, key = value_at(tree, path[:-1]), path[-1]
    match rng.choice(WAYS):
        case "put":
            parent[key] = value(rng)
        case "nudge":
            parent[key] = nudged(parent[key], rng)
        case "delete":
            del parent[key]
        case "double" if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        case "double":
            parent[f"{key}{rng.choice(('', '_', ' ', '2'))}"] = copy.deepcopy(parent[key])
        case "swap":
            other = rng.choice(places)
            # From the untouched tree, as one may hold the other.
            parent[key] = copy.deepcopy(value_at(tree, other))
        case "rename" if isinstance(parent, dict):
            new = rng.choice((rng.choice(TEXTS), str(key)[:-1], str(key).upper(), str(key) + "s"))
            items = [(new if k == key else k, v) for k, v in parent.items()]
            parent.clear()
            parent.update(items)
        case "wrap":
            parent[key] = rng.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 3))
        case "add" if isinstance(parent, dict):
            parent[rng.choice(TEXTS)] = value(rng)
        case "add":
            parent.append(value(rng))
        case "lift" if isinstance(parent[key], dict | list) and parent[key]:
            inner = parent[key]
            parent[key] = next(iter(inner.values())) if isinstance(inner, dict) else inner[0]
        case _:
            parent[key] = value(rng)
    return tree


def nudged(value: Any, rng: random.Random) -> Any:
    """The same kind of thing, and another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 10, -value, -2 * value, 1000))
    if isinstance(value, float):
        return rng.choice(
            (value * 10, -value, value / 3, value + 1, int(value) if abs(value) < 1e9 else 0)
        )
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return rng.choice(
            (value[:at], value[:at] + rng.choice(TEXTS) + value[at:], value.swapcase(), value + " ")
        )
    if isinstance(value, list):
        return [*value, *value] if rng.random() < 0.5 else value[::-1]
    if isinstance(value, dict):
        return dict(reversed(value.items()))
    return odd(rng)


def changes(tree: Any, new: Any) -> Any:
    """The keys whose values are not the same, and what is there now."""
    if not (isinstance(tree, dict) and isinstance(new, dict)):
        return new
    return {k: new.get(k, "gone") for k in {**tree, **new} if tree.get(k) != new.get(k)}
