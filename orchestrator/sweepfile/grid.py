"""Reads the part of a sweep file that spans its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from orchestrator.config.fields import single
from orchestrator.config.yaml_tree import At, Node, show
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import Problem
from orchestrator.core.hints import as_list
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.registry import registry
from orchestrator.sweep.grid import MAX_TRIALS, BaseUnknownError, EditAxes, Grid
from orchestrator.sweepfile import overrides as command_line
from orchestrator.sweepfile.concepts import concept_sets, edit_sets
from orchestrator.sweepfile.edits import edits as read_edits
from orchestrator.sweepfile.selections import exclude, include, zips

DEFAULT_BASE = "shapes"
_OF_EDITS = ("unknown axis", "the axis has no value", "zipped axes", "has no effect")


def read_grid(root: At, top: dict[str, At]) -> Grid | None:
    """The grid; with a wrong part it is only good for finding what is wrong with the others."""
    start = len(root.problems)
    base = _base(top.get("base") or replace(root, node=Node(DEFAULT_BASE), where="base"))
    erased = concept_sets(top["concept"], base, {}) if "concept" in top else ()
    sets = {one.name: one for one in erased}

    def read_sets(at: At) -> tuple[str, ...]:
        read = edit_sets(at, base, sets)
        sets.update({one.name: one for one in read})
        return tuple(one.name for one in read)

    before_edits = len(root.problems)
    edits = read_edits(top["edits"], _searched(top), read_sets) if "edits" in top else ()
    are_axes_known = _are_axes_known(edits, root.problems[before_edits:])
    seeds = _seeds(top["seeds"]) if "seeds" in top else (0,)
    if not edits:
        return None
    base = base or _UnknownBase(_UnknownBase.Settings())
    names = tuple(one.name for one in erased)
    place = top["edits"].place
    grid = Grid(base, names or ("",), edits, seeds or (0,), place=place, sets=sets)
    grid = _selected(grid, top, are_axes_known)
    if len(root.problems) > start:
        root.problems.extend(_of_sound_parts(grid, root.problems))
    elif "search" not in top:
        root.problems.extend(grid.expansion.problems)
    return grid if erased else None


def _of_sound_parts(grid: Grid, problems: Sequence[Problem]) -> list[Problem]:
    """What the sound parts of a wrong grid say: a folder that is missing, for one.

    Where no concept is sound, what would be said of any.
    """
    wrong = [problem.where for problem in problems]
    if any(command_line.is_origin(where) for where in wrong):
        return []

    def is_sound(where: str) -> bool:
        return not any(_is_below(w, where) for w in wrong)

    edits = tuple(
        replace(
            edit,
            choices=tuple(c for c in edit.choices if is_sound(c.place.where)),
            settings={
                n: v for n, v in edit.settings.items() if is_sound(f"{edit.place.where}.{n}")
            },
        )
        for edit in grid.edits
    )
    edits = tuple(edit for edit in edits if edit.choices)
    allowed = grid.base.concepts()
    known_sets = {one.name for one in grid.known_sets()}
    right = tuple(name for name in grid.concepts if name and name in known_sets)
    rest = replace(grid, edits=edits, zips=(), exclude=(), include=(), seeds=(0,))
    rounds = [right] if right else [(c,) for c in (allowed or ("one", "another"))[:2]]
    said = []
    for concepts in rounds:
        asked = replace(rest, concepts=concepts)
        said.append(asked.expansion.problems if asked.size() <= MAX_TRIALS else ())
    return [problem for problem in said[0] if all(problem in others for others in said[1:])]


def _are_axes_known(edits: Sequence[EditAxes], problems: Sequence[Problem]) -> bool:
    """Whether only values are wrong, and no edit and no plug-in was left out."""
    known = {f"{edit.place.where}.{name}" for edit in edits for name in edit.settings}
    known |= {f"{c.place.where}.{name}" for e in edits for c in e.choices for name in c.settings}
    return all(any(_is_below(p.where, where) for where in known) for p in problems)


def _is_below(where: str, place: str) -> bool:
    return where == place or where.startswith((f"{place}.", f"{place}["))


def _selected(grid: Grid, top: dict[str, At], are_axes_known: bool) -> Grid:
    """With what `zip`, `exclude` and `include` say; what is wrong with one leaves it out."""
    more: dict[str, ConceptSet] = {}

    def read_concepts(at: At) -> tuple[str, ...]:
        read = concept_sets(at, grid.base, {**grid.sets, **more})
        more.update({one.name: one for one in read})
        return tuple(one.name for one in read)

    def read_parts(at: At) -> tuple[str, ...]:
        read = edit_sets(at, grid.base, {**grid.sets, **more})
        more.update({one.name: one for one in read})
        return tuple(one.name for one in read)

    read: dict[str, Callable[[At], Any]] = {
        "zip": lambda at: zips(at, grid),
        "exclude": lambda at: exclude(at, grid),
        "include": lambda at: include(at, grid, read_concepts, read_parts, _seed_list),
    }
    found: dict[str, Any] = {}
    for key, reader in read.items():
        if key not in top:
            continue
        problems: list[Problem] = []
        values = reader(replace(top[key], problems=problems))
        if not problems:
            found["zips" if key == "zip" else key] = values
        # Where an edit could not be read, its axes are missed; that is no fault of these.
        hidden = () if are_axes_known else _OF_EDITS
        top[key].problems.extend(p for p in problems if not p.what.startswith(hidden))
    found["sets"] = {**grid.sets, **more}
    return replace(grid, **found) if are_axes_known else grid


class _UnknownBase(BasePlugin):
    """Stands in for a base that cannot be read, so that all else is still looked at."""

    @property
    def name(self) -> str:  # type: ignore[override]
        raise BaseUnknownError

    def concepts(self) -> tuple[str, ...] | None:
        return None

    def prompts(self, concept: str) -> tuple[str, ...]:
        raise BaseUnknownError

    def retained(self, concept: str) -> tuple[str, ...]:
        raise BaseUnknownError

    def never_known(self) -> str | None:
        raise BaseUnknownError


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


def _seeds(at: At) -> tuple[int, ...]:
    """A count, or a list of seeds."""
    if isinstance(at.value, list):
        return _seed_list(at)
    got = at.value
    if isinstance(got, int) and not isinstance(got, bool) and 1 <= got <= MAX_TRIALS:
        return tuple(range(got))
    limits = f"1 to {MAX_TRIALS:,}"
    at.say(
        f"must be a number of seeds ({limits}) or a list but got "
        f"{show(at.node.plain())}{as_list(got)}"
    )
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
