"""Reads the part of a sweep file that spans its trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from orchestrator.config.fields import single, texts
from orchestrator.config.yaml_tree import At, Node, show
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.registry import registry
from orchestrator.sweep.grid import MAX_TRIALS, Grid
from orchestrator.sweepfile.edits import edits as read_edits
from orchestrator.sweepfile.selections import exclude, include, zips

DEFAULT_BASE = "shapes"


def read_grid(root: At, top: dict[str, At]) -> Grid | None:
    """The grid; the problems of its trials are reported once its parts have none."""
    start = len(root.problems)
    edits = read_edits(top["edits"], _searched(top)) if "edits" in top else ()
    are_edits_sound = len(root.problems) == start
    base = _base(top.get("base") or replace(root, node=Node(DEFAULT_BASE), where="base"))
    erased = concepts(top["concept"], base) if "concept" in top else ()
    seeds = _seeds(top["seeds"]) if "seeds" in top else (0,)
    if base is None or not erased or not edits:
        return None
    grid = Grid(base, erased, edits, seeds, place=top["edits"].place)
    if are_edits_sound:
        read_concepts = partial(concepts, base=base, others=erased)
        grid = replace(
            grid,
            zips=zips(top["zip"], grid) if "zip" in top else (),
            exclude=exclude(top["exclude"], grid) if "exclude" in top else (),
            include=include(top["include"], grid, read_concepts, _seed_list)
            if "include" in top
            else (),
        )
    if len(root.problems) == start and "search" not in top:
        root.problems.extend(grid.expansion.problems)
    return grid


def _searched(top: dict[str, At]) -> dict[str, At]:
    """The entries of `search.space`; what is wrong with them is said where it is read."""
    search = top.get("search")
    if search is None or not isinstance(search.value, dict) or "space" not in search.value:
        return {}
    space = search.key("space")
    return {name: space.key(name) for name in space.value} if isinstance(space.value, dict) else {}


def _base(at: At) -> BasePlugin | None:
    """A base plug-in; a text that is none, but looks like a place, is a diffusers model."""
    name = at.value
    is_unknown = isinstance(name, str) and name not in registry("base")
    if is_unknown and ("/" in name or "." in name or Path(name).is_dir()):
        settings = Node({"source": at.node}, at.node.line)
        at = replace(at, node=Node({"diffusers": settings}, at.node.line))
    found = single(at, "base")
    return cast("BasePlugin", found[0](found[1])) if found else None


def concepts(at: At, base: BasePlugin | None, others: Iterable[str] = ()) -> tuple[str, ...]:
    """One concept or a list of them, which the base knows and can tell from each other.

    `others` stand elsewhere in the file: they may be named again, but not in other letters.
    """
    found = texts(at)
    if base is None:
        return found
    allowed, before = base.concepts(), {base.as_read(other): other for other in others}
    for item in at.items():
        concept = item.value
        if not isinstance(concept, str):
            continue
        if allowed is not None and concept not in allowed:
            item.say(f"unknown concept {concept!r}{suggest(concept, list(allowed))}")
        elif (other := before.setdefault(base.as_read(concept), concept)) != concept:
            item.say(f"{concept!r} is the same to the model as {other!r}, which stands before")
    return found


def _seeds(at: At) -> tuple[int, ...]:
    """A count, or a list of seeds."""
    if isinstance(at.value, list):
        return _seed_list(at)
    got = at.value
    if isinstance(got, int) and not isinstance(got, bool) and 1 <= got <= MAX_TRIALS:
        return tuple(range(got))
    limits = f"1 to {MAX_TRIALS:,}"
    at.say(f"must be a number of seeds ({limits}) or a list but got {show(at.node.plain())}")
    return (0,)


def _seed_list(at: At) -> tuple[int, ...]:
    """Seeds as they are."""
    if not at.items():
        at.say("must have at least one seed but is empty")
    found: list[int] = []
    for item in at.items():
        seed = item.value
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            item.say(f"a seed must be a whole number >= 0 but got {show(item.node.plain())}")
        elif seed in found:
            item.say(f"duplicate value {seed}")
        else:
            found.append(seed)
    return tuple(found)
