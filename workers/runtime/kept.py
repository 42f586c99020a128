"""Judges stay in memory from one stage to the next, and are let go where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
_clear: list[Callable[[], None]] = []


def kept(count: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the last `count` results of a loader, by its arguments, until `let_go`."""

    def decorate(load: Callable[P, T]) -> Callable[P, T]:
        cached = lru_cache(maxsize=count)(load)
        _clear.append(cached.cache_clear)
        return cast("Callable[P, T]", cached)

    return decorate


def let_go() -> None:
    """Forget everything that is kept."""
    for clear in _clear:
        clear()
