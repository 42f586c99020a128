"""Batches computed part by part, because a whole one does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_parts: ContextVar[int] = ContextVar("parts", default=1)


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """Inside, every batch is computed in `count` parts; 1 undoes an outer one's."""
    token = _parts.set(count)
    try:
        yield
    finally:
        _parts.reset(token)


def part_size(batch_size: int) -> int:
    """How many examples of a batch go through a network at a time; one or more."""
    return max(1, -(-batch_size // _parts.get()))


def by_parts(
    predict: Callable[..., Tensor],
    latents: Tensor,
    timesteps: Tensor | int,
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
    found = []
    for start in range(0, len(latents), size):
        part = slice(start, start + size)
        is_each = isinstance(timesteps, Tensor) and timesteps.dim() > 0
        at = timesteps[part] if is_each else timesteps  # type: ignore[index]
        found.append(_kept_small(predict, latents[part], at, text[part], *shared))
    return torch.cat(found)


def _kept_small(predict: Callable[..., Tensor], *args: Any) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return predict(*args)
    # To keep the generators' state would make the CPU wait for the device.
    made: Tensor = checkpoint(predict, *args, use_reentrant=False, preserve_rng_state=False)
    return made
