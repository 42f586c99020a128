"""YAML 1.2 as plain data that knows where each value stands.

ruamel.yaml turns text into events; we turn events into values ourselves, because only then is it
certain that a tag never makes an object and that every value has its line. Its `compose` would stop
at the first error, and an alias would stand on its anchor's line and count as its whole value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

from orchestrator.core.errors import Place, Problem
from orchestrator.core.text import shortened

MAX_DEPTH = 40
MAX_VALUES = 200_000
"""Aliases can make a short file mean a huge one; a sweep of this size is a mistake or an attack."""
_ESCAPE = re.compile(r"\\U([0-9a-fA-F]{8})")
_INT = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(?:(inf|Inf|INF)|(nan|NaN|NAN))")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True)
class Node:
    """A value with its line: a scalar, a dict of nodes or a list of nodes.

    `origin` is set where the value does not come from the file ("command line: seeds").
    """

    value: Any
    line: int | None = None
    key_lines: Mapping[str, int | None] = field(default_factory=dict)
    origin: str | None = None
    size: int = 1

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass(frozen=True)
class At:
    """A node, its YAML path, and the list that its problems go to."""

    node: Node
    where: str
    file: str | None
    problems: list[Problem]

    @property
    def value(self) -> Any:
        """The node's value: a scalar, a dict of nodes or a list of nodes."""
        return self.node.value

    @property
    def place(self) -> Place:
        """Where the node stands."""
        return Place(self.where, self.file, self.node.line)

    def say(self, what: str) -> None:
        """Report a problem with this value."""
        self.problems.append(self.place.problem(what))

    def say_key(self, key: str, what: str) -> None:
        """Report a problem with a key of this mapping."""
        child = self.key(key)
        line = self.node.key_lines.get(key, child.node.line)
        self.problems.append(Problem(what, child.where, child.file, line if child.file else None))

    def key(self, name: str) -> At:
        """The value under a key."""
        return self._child(self.value[name], f"{self.where}.{name}" if self.where else name)

    def items(self) -> list[At]:
        """The items of a list; any other value is a list of itself."""
        if not isinstance(self.value, list):
            return [self]
        return [self._child(n, f"{self.where}[{i}]") for i, n in enumerate(self.value)]

    def _child(self, node: Node, where: str) -> At:
        if node.origin:
            return At(node, node.origin, None, self.problems)
        return At(node, where, self.file, self.problems)


def read_yaml(text: str, file: str | None, problems: list[Problem], where: str = "") -> Node | None:
    """The file's one document, or None if it cannot be read; what is wrong goes to `problems`."""
    try:
        return _Builder(text, file, problems).document(where)
    except ReaderError as error:
        at = text.count("\n", 0, int(error.position)) + 1
        what = f"not valid YAML: the character {chr(error.character)!r} is not allowed"
        problems.append(Problem(what, where, file, at))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(part) for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else None
        problems.append(Problem(f"not valid YAML: {reason}", where, file, line))
    except YAMLError as error:
        problems.append(Problem(f"not valid YAML: {error}", where, file))
    except _UnreadableError as error:
        problems.append(Problem(error.what, where, file, error.line))
    except (ValueError, OverflowError):  # ruamel hands an escape to `chr` as it is
        beyond = next((m for m in _ESCAPE.finditer(text) if int(m[1], 16) > sys.maxunicode), None)
        if beyond is None:
            raise
        line = text.count("\n", 0, beyond.start()) + 1
        what = f"not valid YAML: there is no character {beyond[0]} (the last is \\U0010FFFF)"
        problems.append(Problem(what, where, file, line))
    return None


class _UnreadableError(Exception):
    def __init__(self, what: str, line: int | None) -> None:
        self.what, self.line = what, line
        super().__init__(what)


class _Builder:
    def __init__(self, text: str, file: str | None, problems: list[Problem]) -> None:
        self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)
        self.file = file
        self.problems = problems
        self.anchors: dict[str, Node | None] = {}
        self.count = 0

    def document(self, where: str) -> Node | None:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), StreamEndEvent):
            self._say("the file is empty", where, 1)
            return None
        node = self._node(next(self.events), where, 0)
        next(self.events)  # the document's end
        after = next(self.events)
        if not isinstance(after, StreamEndEvent):
            self._say("must hold one YAML document but holds more", where, _line(after))
        return node

    def _node(self, event: Any, where: str, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise _UnreadableError(f"nested more than {MAX_DEPTH} deep", _line(event))
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if event.ctag is not None:
            self._say(f"tags such as {event.ctag} are not allowed", where, _line(event))
        if event.anchor:
            self.anchors[event.anchor] = None  # until it is known
        if isinstance(event, MappingStartEvent):
            node = self._mapping(event, where, depth)
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(event, where, depth)
        else:
            node = Node(self._scalar(event, where), _line(event))
        if max(node.size, self.count) > MAX_VALUES:
            raise _UnreadableError(f"means more than {MAX_VALUES:,} values", _line(event))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise _UnreadableError(f"unknown alias *{event.anchor}", _line(event))
        node = self.anchors[event.anchor]
        if node is None:
            raise _UnreadableError(f"alias *{event.anchor} contains itself", _line(event))
        return replace(node, line=_line(event))

    def _mapping(self, start: Any, where: str, depth: int) -> Node:
        values: dict[str, Node] = {}
        lines: dict[str, int | None] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self._node(event, where, depth + 1).plain()
            path = f"{where}.{key}" if where else str(key)
            value = self._node(next(self.events), path, depth + 1)
            if not isinstance(key, str):
                self._say(f"keys must be text but got {show(key)}", where, _line(event))
            elif key == "<<":
                self._say("merge keys are not YAML 1.2; repeat the keys", path, _line(event))
            elif key in values:
                first = f", first on line {lines[key]}" if lines[key] else ""
                self._say(f"duplicate key {key!r}{first}", path, _line(event))
            else:
                values[key], lines[key] = value, _line(event)
        return Node(values, _line(start), lines, size=1 + sum(n.size for n in values.values()))

    def _sequence(self, start: Any, where: str, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self._node(event, f"{where}[{len(items)}]", depth + 1))
        return Node(items, _line(start), size=1 + sum(n.size for n in items))

    def _scalar(self, event: Any, where: str) -> Any:
        text: str = event.value
        if any("\ud800" <= c <= "\udfff" for c in text):  # JSON writes one character as two
            halves = text.encode("utf-16", "surrogatepass")
            try:
                text = halves.decode("utf-16")
            except UnicodeDecodeError:
                text = halves.decode("utf-16", "replace")
                self._say("half of a character (a lone surrogate) is no text", where, _line(event))
        if "\0" in text:
            self._say("a text may not hold NUL (\\0)", where, _line(event))
        value = text if event.style else plain_scalar(text)
        if isinstance(value, int) and abs(value) >= 2**63:
            self._say(
                f"must be a number of 64 bits but got {shortened(text, 70)}", where, _line(event)
            )
            return 0
        return value

    def _say(self, what: str, where: str, line: int | None) -> None:
        self.problems.append(Problem(what, where, self.file, line))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted word means in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _NOT_FINITE.fullmatch(text):
        return float(f"{match[1]}inf" if match[2] else "nan")
    return text


def as_number(text: str) -> int | float | None:
    """The number that a quoted text spells; None if it spells none."""
    value = plain_scalar(text.strip())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None  # type: ignore[return-value]


def show(value: Any) -> str:
    """A value as an error message quotes it: YAML's words, and not too much of it."""
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, dict | list) and not value:
        return "an empty list" if isinstance(value, list) else "an empty mapping"
    if isinstance(value, list):
        text = f"[{', '.join(show(v) for v in value[:20])}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{k}: {show(v)}' for k, v in list(value.items())[:20])}}}"
    else:
        text = repr(value)
    return shortened(text, 70)
