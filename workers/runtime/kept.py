"""Memory between pieces of work: judges stay, what else was used is given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import TypeVar

A = TypeVar("A", bound=Hashable)
T = TypeVar("T")
_clear: list[Callable[[], None]] = []


class _Past:
    """What `give_back` looks past: so many modules, and whether a model may be among it. If not
    `everywhere`, where the next one looks.
    """

    modules = 0
    has_model = False
    everywhere = False


_past = _Past()


def kept(count: int) -> Callable[[Callable[[A], T]], Callable[[A], T]]:
    """Keep the last `count` results of a loader, by its argument, until `let_go`.

    An argument that has `marks()`, such as the times of its files, is another once these differ.
    """

    def decorate(load: Callable[[A], T]) -> Callable[[A], T]:
        @lru_cache(maxsize=count)
        def cached(what: A, _marks: object) -> T:
            return load(what)

        @wraps(load)
        def look(what: A) -> T:
            before = cached.cache_info()
            found = cached(what, what.marks() if hasattr(what, "marks") else None)
            if before.currsize == count and cached.cache_info().misses > before.misses:
                look_everywhere()  # the new one took an old one's place
            return found

        _clear.append(cached.cache_clear)
        return look

    return decorate


def let_go() -> None:
    """Forget everything that is kept."""
    for clear in _clear:
        clear()
    look_everywhere()


def look_past_what_is_here() -> None:
    """Have `give_back` search no more in what is loaded now, a model among it, if libraries came
    with that: their half a million objects cost it a quarter of a second each time, a model's few
    thousand cost nothing. What is freed by its count still is.
    """
    if len(sys.modules) > _past.modules:
        _past.modules = len(sys.modules)
        _look_past_it()


def look_everywhere() -> None:
    """Have the next `give_back` search everything, once: something that was loaded is let go."""
    _past.everywhere = True
    gc.unfreeze()


def _look_past_it() -> None:
    _past.everywhere, _past.has_model = False, True
    gc.freeze()


def give_back_model() -> None:
    """`give_back` when no model is held any more."""
    if _past.has_model:
        look_everywhere()
    give_back()
    _past.has_model = False


def give_back() -> None:
    """Return freed memory to the system and to the GPU's other workers: glibc and torch keep what a
    training's many tensors took, and workers live long. The host's stays on systems without glibc.
    """
    import torch  # not above: plug-ins keep their judges with this module

    gc.collect()
    if _past.everywhere:
        _look_past_it()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
