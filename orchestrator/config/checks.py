"""One value against a plug-in's settings: what is wrong with it, in our words.

Values are checked as JSON in pydantic's strict mode: true is no number, "yes" is no boolean, and a
list may still be a tuple. One thing is mended: text that spells a number, where a number is wanted,
because YAML 1.1 taught people that 1e-4 needs care.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.config.yaml_tree import as_number, show
from orchestrator.core.hints import as_list, nearest
from orchestrator.core.settings import Settings

S = TypeVar("S", bound=Settings)
_WHOLE = ("int_type", "int_parsing", "int_from_float")
_NUMBER = (*_WHOLE, "float_type", "float_parsing")
_PHRASES = {
    **dict.fromkeys(_WHOLE, "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_sub_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "mapping_type"), "a mapping"),
    "finite_number": "a finite number",
    "path_type": "a path",
    "none_required": "null",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
_SEQUENCES = (list, tuple, set, frozenset, Sequence)


@dataclass(frozen=True)
class Fault:
    """What is wrong, and with which part of a value: the keys and indices that lead to it."""

    inside: tuple[str | int, ...]
    what: str

    def path(self) -> str:
        """The YAML path from the value to the part: "", "[1]", ".key"."""
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.inside)


def is_list_field(cls: type[Settings], field: str) -> bool:
    """Whether one value of the field is itself a list."""
    return _holds_list(cls.model_fields[field].annotation)


def _holds_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if origin in _SEQUENCES:
        return True
    return origin not in (dict, Mapping, typing.Literal) and any(
        _holds_list(part) for part in typing.get_args(annotation)
    )


def check(cls: type[Settings], field: str, value: Any) -> tuple[Any, list[Fault]]:
    """The value as it is to be used, and what is wrong with it as a value of this field.

    Numbers written as text, and whole numbers as 1e3, are made what they mean.
    """
    errors = _errors(cls, field, value)
    mended = value
    for error in errors:
        if error["type"] in _NUMBER and (number := _meant(error)) is not None:
            mended = _put(mended, _inside(mended, error["loc"]), number)
    if mended is not value:
        value, errors = mended, _errors(cls, field, mended)
    too_large = {path: Fault(path, what) for path, what in _too_large(value, ())}
    others = [fault for fault in _faults(value, errors) if fault.inside not in too_large]
    return value, [*too_large.values(), *others]


def _too_large(
    value: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Numbers that neither JSON nor Parquet can hold, wherever a setting may have any value."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"must be a finite number but got {show(value)}"
    elif isinstance(value, int) and abs(value) >= 2**63:  # 1e30 where a whole number is wanted
        yield path, f"must be a number of 64 bits but got {show(value)}"
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _too_large(inner, (*path, name))


def build(cls: type[S], values: Mapping[str, Any]) -> tuple[S | None, list[str]]:
    """The settings, or what is wrong with values that are right one by one."""
    try:
        return cls.model_validate_json(json.dumps(values), strict=True), []
    except ValidationError as error:
        faults = _faults(values, error.errors(include_url=False))
        return None, [
            f"{fault.path().removeprefix('.')}: {fault.what}" if fault.inside else fault.what
            for fault in faults
        ]


def missing(cls: type[Settings], given: Iterable[str]) -> list[str]:
    """The settings that have no default and were not given."""
    return [
        name
        for name, field in cls.model_fields.items()
        if field.is_required() and name not in given
    ]


def _errors(cls: type[Settings], field: str, value: Any) -> list[Any]:
    try:
        cls.model_validate_json(json.dumps({field: value}), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        return [
            e | {"loc": e["loc"][1:]}
            for e in found
            if e["loc"][:1] == (field,) and not (e["type"] == "missing" and len(e["loc"]) == 1)
        ]
    return []


def _meant(error: Any) -> int | float | None:
    """The number that stands where a number is wanted."""
    got = error["input"]
    number = as_number(got) if isinstance(got, str) else got if isinstance(got, float) else None
    if error["type"] in _WHOLE and isinstance(number, float):
        return int(number) if number.is_integer() else number
    return number


def _put(value: Any, path: Sequence[str | int], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _put(value[path[0]], path[1:], new)
    return copy


def _inside(value: Any, loc: Iterable[str | int]) -> tuple[str | int, ...]:
    """The part of pydantic's location that is in the value; the rest names members of unions."""
    path: list[str | int] = []
    for part in loc:
        is_key = isinstance(value, dict) and part in value
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            value = value[part]
            path.append(part)
    return tuple(path)


def _faults(value: Any, errors: Sequence[Any]) -> list[Fault]:
    """One fault for each wrong part; the members of a union that it failed are joined by "or"."""
    groups: dict[tuple[str | int, ...], list[Any]] = {}
    for error in errors:
        groups.setdefault(_inside(value, error["loc"]), []).append(error)
    return [Fault(inside, _sentence(group)) for inside, group in groups.items()]


def _sentence(errors: Sequence[Any]) -> str:
    first = errors[0]
    if first["type"] == "missing":
        return f"missing key {first['loc'][-1]!r}"
    if first["type"] == "extra_forbidden":
        return "unknown key"
    if first["type"] in ("value_error", "assertion_error"):
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    got = first["input"]
    phrases = list(dict.fromkeys(_phrase(error) for error in errors))
    options = [o for e in errors if e["type"] == "literal_error" for o in _options(e)]
    hint = nearest(got, [o.strip("'") for o in options]) if isinstance(got, str) else ""
    return f"must be {' or '.join(phrases)} but got {show(got)}{as_list(got) or hint}"


def _phrase(error: Any) -> str:
    if error["type"] in ("literal_error", "enum"):
        options = _options(error)
        return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
    template = _PHRASES.get(error["type"])
    if template is None:
        return str(error["msg"].removeprefix("Input should be "))
    return template.format(**error.get("ctx", {}))


def _options(error: Any) -> list[str]:
    """The choices in pydantic's "'x', 'y' or 'z'"."""
    return re.split(r", | or ", error["ctx"]["expected"])
