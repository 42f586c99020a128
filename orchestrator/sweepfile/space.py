"""Reads a search's space: which settings, which values, under which conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.config.checks import check
from orchestrator.config.fields import NOUNS, flag, known, texts, value_of
from orchestrator.config.yaml_tree import At, show
from orchestrator.core.hints import suggest
from orchestrator.sweep.grid import EditAxes, Grid
from orchestrator.sweep.space import Categorical, Condition, Dimension, Range, Space
from orchestrator.sweepfile.axes import plugin_axes
from orchestrator.sweepfile.selections import NamedSetting, labels, reachable, setting

MAX_DIGITS = 12


def read_space(at: At, grid: Grid, for_each: tuple[str, ...], held: tuple[str, ...] = ()) -> Space:
    """The space; a setting with a problem is left out of it.

    `held` are the axes that are not to be searched: those of `for_each`, and the aggregated ones.
    """
    return _Reader(grid, for_each, held).space(at)


def say_same_name(labels: tuple[Any, ...], at: At) -> None:
    """A search tells plug-ins apart by their names, not by the settings beside them."""
    if len(set(labels)) < len(labels):
        at.say(f"the axis has the same name twice: {', '.join(labels)}; search the settings")


class _Reader:
    """Reads the space's settings, those above known to those below."""

    def __init__(self, grid: Grid, for_each: tuple[str, ...], held: tuple[str, ...]) -> None:
        self.grid = grid
        self.for_each = for_each
        self.held = held
        self.given: frozenset[str] = frozenset()
        self.heads = {edit.head: edit for edit in grid.edits}

    def space(self, at: At) -> Space:
        if not isinstance(at.value, dict) or not at.value:
            at.say(f"must map settings to values or ranges but got {show(at.node.plain())}")
            return Space(())
        found: dict[str, Dimension] = {}
        self.given = frozenset(at.value)
        for name in at.value:
            made = self.dimension(name, at.key(name), found)
            if made is not None:
                found[name] = made
        return Space(tuple(found.values()))

    def dimension(self, name: str, at: At, above: Mapping[str, Dimension]) -> Dimension | None:
        meant = setting(self.grid, name)
        if name in self.for_each:
            at.say("is named by `for_each` and cannot be searched too")
        elif name in self.held:
            at.say("is aggregated over and cannot be searched too")
        elif name == "seed":
            at.say("seeds are replicates, not settings; confirm the worst case on fresh ones")
        elif meant is None and name not in self.heads and name != "concept":
            names = dict.fromkeys([*self.grid.axes_called, *reachable(self.grid)])
            del names["seed"]
            at.say(f"unknown setting {name!r}{suggest(name, names)}")
        else:
            before = len(at.problems)
            when = (*self.implied(name, at, above), *self.stated(at, above))
            made = self.values(name, at, meant)
            if made is not None and len(at.problems) == before:
                return replace(made, when=when)
        return None

    def implied(self, name: str, at: At, above: Mapping[str, Dimension]) -> tuple[Condition, ...]:
        """A plug-in's setting is there where the plug-in is chosen."""
        key, _, rest = name.partition(".")
        label = rest.rpartition(".")[0]
        edit = next((edit for edit in self.grid.edits if edit.key == key), None)
        if not label or edit is None:
            return ()
        chosen = above.get(edit.head)
        if chosen is None and edit.head in self.given:
            at.say(f"must stand below {edit.head}, which chooses {label!r}")
            return ()
        if isinstance(chosen, Categorical):
            offered = chosen.values
        else:
            offered = tuple(choice.label for choice in edit.choices)
        if label not in offered:
            at.say(f"has no effect: {label!r} is not chosen by {edit.head} above it")
        is_open = chosen is not None or edit.head in self.for_each
        return ((edit.head, (label,)),) if is_open else ()

    def stated(self, at: At, above: Mapping[str, Dimension]) -> tuple[Condition, ...]:
        """`when: {finetune.adapter: lora}`."""
        if not (isinstance(at.value, dict) and "when" in at.value):
            return ()
        when = at.key("when")
        if not isinstance(when.value, dict) or not when.value:
            when.say(f"must map settings above to values but got {show(when.node.plain())}")
            return ()
        found = []
        for name in when.value:
            entry, dimension = when.key(name), above.get(name)
            if not isinstance(dimension, Categorical):
                lists = [n for n, d in above.items() if isinstance(d, Categorical)]
                hint = suggest(name, lists) if lists else ""
                entry.say(f"{name!r} is no listed setting above this one{hint}")
                continue
            values = tuple(item.node.plain() for item in entry.items())
            for value in values:
                if value not in dimension.values:
                    entry.say(f"{name} has no value {show(value)}")
            found.append((name, values))
        return tuple(found)

    def values(self, name: str, at: At, meant: NamedSetting | None) -> Dimension | None:
        node = at.value
        if not isinstance(node, dict) or name in self.heads:
            return self.choices(name, at, meant)
        kinds = [kind for kind in ("int", "float", "choices") if kind in node] or [
            kind for kind in ("log",) if kind in node
        ]
        if len(kinds) != 1:
            forms = "{log: [low, high]}, {int: [low, high]}, {float: [low, high]} or a list"
            at.say(f"must be one of {forms} but got {show(at.node.plain())}")
            return None
        if kinds[0] == "choices":
            known(at, ("choices", "when"))
            return self.choices(name, at.key("choices"), meant)
        return self.range(name, at, kinds[0], meant)

    def choices(self, name: str, at: At, meant: NamedSetting | None) -> Categorical | None:
        before = len(at.problems)
        if not at.items():
            noun = NOUNS[self.heads[name].plugin_kind] if name in self.heads else "value"
            at.say(f"must have at least one {noun} but is empty")
        if name in self.heads:
            values = self.names(at, self.heads[name])
        elif meant is None:
            values = texts(at)
            for item in at.items():
                if item.value not in self.grid.concepts:
                    allowed = suggest(str(item.value), list(self.grid.concepts))
                    item.say(f"{item.value!r} is no concept of the sweep{allowed}")
        else:
            values = tuple(value_of(meant.cls, meant.name, item) for item in at.items())
        if any(value in values[:i] for i, value in enumerate(values)):
            at.say("has the same value twice")
        elif name in self.heads:
            say_same_name(tuple(one.label for one in self.heads[name].choices), at)
        return Categorical(name, values) if len(at.problems) == before else None

    def names(self, at: At, edit: EditAxes) -> tuple[str, ...]:
        """Plug-ins' names; a data set's own settings may stand beside its name."""
        kind = edit.plugin_kind
        found: list[str] = []
        for item in at.items():
            if not isinstance(item.value, dict):
                found += labels(item, kind)
            elif made := plugin_axes(item, kind):
                found.append(made.label)
                if made not in edit.choices:
                    item.say(f"the settings of {made.label!r} belong in `edits`, which names it")
        return tuple(found)

    def range(self, name: str, at: At, kind: str, meant: NamedSetting | None) -> Range | None:
        extras = {"log": ("digits",), "int": ("step", "log"), "float": ("step", "digits")}[kind]
        given = known(at, (kind, "when", *extras))
        if meant is None:
            at.say("must be a list of values")
            return None
        ends = given[kind].items()
        if not isinstance(given[kind].value, list) or len(ends) != 2:
            given[kind].say(f"must be [low, high] but got {show(given[kind].node.plain())}")
            return None
        before = len(at.problems)
        low, high = (value_of(meant.cls, meant.name, end) for end in ends)
        step = _number(given["step"]) if "step" in given else None
        digits = _digits(given["digits"]) if "digits" in given else 2
        is_log = kind == "log" or ("log" in given and flag(given["log"]))
        if len(at.problems) > before:
            return None
        made = Range(name, low, high, kind == "int", is_log, step, digits)
        _say_bad_range(made, given[kind])
        if len(at.problems) == before:
            _say_off_grid(made, given[kind])
            _say_only_whole(made, meant, given[kind])
        return made


def _number(at: At) -> float | None:
    value = at.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        at.say(f"must be a number above 0 but got {show(at.node.plain())}")
        return None
    return value


def _digits(at: At) -> int:
    if type(at.value) is not int or not 1 <= at.value <= MAX_DIGITS:
        at.say(f"must be a whole number, 1 to {MAX_DIGITS}, but got {show(at.node.plain())}")
        return 1
    return int(at.value)


def _say_bad_range(made: Range, at: At) -> None:
    numbers = [made.low, made.high]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        at.say("must be a range of numbers; write a list of values")
    elif made.low >= made.high:
        at.say(f"the low end must be below the high end but got {show(numbers)}")
    elif made.log and made.low <= 0:
        at.say(f"a logarithm needs a low end above 0 but got {made.low:g}")
    elif made.is_int and any(n != int(n) for n in (*numbers, made.step or 1)):
        at.say("whole numbers must have whole ends and a whole step")
    elif made.log and made.step is not None:
        at.say("is laid out by its logarithm and can have no step")


def _say_off_grid(made: Range, at: At) -> None:
    if made.step is None or made.size is None:
        return
    last = made.at(made.size - 1)
    if not math.isclose(last, made.high):
        ends = f"{last:g} or {last + made.step:g}"
        at.say(f"the high end must be a whole number of steps up ({ends}) but got {made.high:g}")


def _say_only_whole(made: Range, meant: NamedSetting, at: At) -> None:
    """A setting that counts something has no values between its whole ones."""
    if made.is_int:
        return
    between = float(f"{made.low + (made.high - made.low) / math.pi:.3g}")
    _, faults = check(meant.cls, meant.name, between + (0.5 if between.is_integer() else 0.0))
    if faults:
        at.say(f"{faults[0].what}; for whole numbers write {{int: [low, high]}}")
