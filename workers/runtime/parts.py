"""Batches computed part by part, because a whole one does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from workers.runtime.progress import tell

T = TypeVar("T")
_parts: ContextVar[int] = ContextVar("parts", default=1)


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """Inside, every batch is computed in `count` parts; 1 undoes an outer one's."""
    token = _parts.set(count)
    try:
        yield
    finally:
        _parts.reset(token)


def parts() -> int:
    """In how many parts batches are computed here."""
    return _parts.get()


def part_size(batch_size: int) -> int:
    """How many examples of a batch go through a network at a time; one or more."""
    return max(1, -(-batch_size // parts()))


def passes(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Items to go through a network, `size` at a time or fewer; says after each how far it is."""
    size = part_size(size)
    for start in range(0, len(items), size):
        yield items[start : start + size]
        tell(min(start + size, len(items)), len(items))


def by_parts(
    predict: Callable[..., Tensor],
    latents: Tensor,
    timesteps: Tensor | float,
    text: Tensor,
    *shared: Any,
) -> Tensor:
    """`predict(latents, timesteps, text, *shared)`, its first dimension computed part by part.

    Where gradients are asked for, each part keeps its inputs alone and runs once more on the way
    back (Chen et al. 2016), so that one part's activations are there at a time. Whatever the loss
    makes of the predictions, its gradient is the whole batch's. `predict` must draw no random
    numbers and leave nothing behind but its result.

    Latents (n, c, h, w), time steps (n,) or one, text (n, tokens, width).
    """
    size = part_size(len(latents))
    if size == len(latents):
        return predict(latents, timesteps, text, *shared)
    if torch.is_grad_enabled():
        # To keep the generators' state would make the CPU wait for the device.
        predict = partial(checkpoint, predict, use_reentrant=False, preserve_rng_state=False)
    found = []
    for start in range(0, len(latents), size):
        part, at = slice(start, start + size), timesteps
        if isinstance(at, Tensor) and at.dim() > 0:
            at = at[part]
        found.append(predict(latents[part], at, text[part], *shared))
    return torch.cat(found)
