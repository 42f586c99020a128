"""Suggestions for what was misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Mapping


def suggest(got: str, allowed: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """'; did you mean …? (allowed: …)' for an error about a name."""
    names = sorted(allowed)
    return f"{nearest(got, names)} (allowed: {', '.join(names)})" if names else ""


def as_list(got: object) -> str:
    """'; a list is written [1, 2]', of a text that may be meant for one."""
    is_list = isinstance(got, str) and "," in got and not got.startswith(("[", "{"))
    return f"; a list of values is written [{got}]" if is_list else ""


def nearest(got: str, names: list[str]) -> str:
    """'; did you mean …?', or nothing if no name is near."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(got).lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""
