"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

TellProgress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (steps done, steps in all, numbers such as the loss)."""
_listener: ContextVar[TellProgress | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(progress: TellProgress) -> Iterator[None]:
    """Inside, what `tell` says goes to `progress`."""
    token = _listener.set(progress)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(done: int, total: int) -> None:
    """Say how far a loop is whose caller handed it no `Progress`; nothing where nobody listens.

    A worker that says nothing for long is taken for one that hangs. Not for inside a training's
    step: the worker may be left here, and then what was trained since the last save is lost.
    """
    if (listener := _listener.get()) is not None:
        listener(done, total, {})
