"""Memory between pieces of work: judges stay, what else was used is given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
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


def give_back() -> None:
    """Return freed memory to the system and to the GPU's other workers: glibc and torch keep what a
    training's many tensors took, and workers live long. The host's stays on systems without glibc.
    """
    import torch  # not above: plug-ins keep their judges with this module

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
