"""Random numbers that depend on (seed, step, stream) only, never on what was drawn before.

So training resumed at step 100 draws what training straight through would have drawn. Noise is
always drawn on the CPU and then moved (without waiting for the device), so results do not depend on
the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(
    seed: int, step: int, stream: str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A fresh generator; `stream` names the use ("noise"), so that uses do not share numbers."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    # torch's CPU generator takes its state from the low 32 bits of a seed, CUDA's from all 64.
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(
    shape: Sequence[int], seed: int, step: int, stream: str, device: str | torch.device = "cpu"
) -> Tensor:
    """Standard normal numbers, fp32 of `shape`, drawn on the CPU and moved to `device`."""
    return _moved(torch.randn(tuple(shape), generator=generator(seed, step, stream)), device)


def integers(
    high: int, count: int, seed: int, step: int, stream: str, device: str | torch.device = "cpu"
) -> Tensor:
    """Uniform int64 numbers (count,) in [0, high), drawn on the CPU and moved to `device`."""
    return _moved(torch.randint(high, (count,), generator=generator(seed, step, stream)), device)


def _moved(drawn: Tensor, device: str | torch.device) -> Tensor:
    """Without waiting: from memory that is not pinned a GPU fetches it only when it is idle."""
    if torch.device(device).type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)


def shuffled(high: int, count: int, seed: int, step: int, stream: str) -> Tensor:
    """`count` of 0 … high - 1, int64 on the CPU: over the steps all of them are drawn equally
    often, in passes of random order each.
    """
    places = range(step * count, (step + 1) * count)
    passes = {
        turn: torch.randperm(high, generator=generator(seed, turn, stream))
        for turn in {place // high for place in places}
    }
    return torch.stack([passes[place // high][place % high] for place in places])
