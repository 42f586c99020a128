"""Stored noise and stops in place of those that the project's streams would give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from workers.erasure import negative_guidance


@dataclass
class Seen:
    """What went through the one function that draws, and through the loss, step by step."""

    x_t: list[Tensor] = field(default_factory=list)
    t: list[int] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)


def draw_stored(
    monkeypatch: pytest.MonkeyPatch, start: Tensor, stops: Tensor, timesteps: Tensor, x_t: Tensor
) -> Seen:
    """Let `draw` begin step i at `start[i]` (c, h, w) and stop at `stops[i]` and `timesteps[i]`.

    What it draws is kept, and `x_t[i]` is what it gives: the released runs rounded their samplers'
    schedule to fp32, and Adam makes more of such a difference than it is. Every range of time steps
    that is drawn from begins at a multiple of its length.
    """
    seen, plain_draw, plain_loss = Seen(), negative_guidance.draw, functional.mse_loss

    def integers(high: int, count: int, seed: int, step: int, stream: str, *_: Any) -> Tensor:
        chosen = {"denoised steps": stops[step], "time step": timesteps[step] % high}
        return chosen.get(stream, torch.tensor(0)).reshape(1)

    def draw(*args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        drawn, t = plain_draw(*args, **kwargs)
        seen.x_t.append(drawn)
        seen.t.append(t)
        return x_t[len(seen.t) - 1][None], t

    def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
        loss = plain_loss(prediction, target)
        for kept, value in ((seen.predictions, prediction), (seen.targets, target)):
            kept.append(value.detach())
        seen.losses.append(loss.detach())
        return loss

    monkeypatch.setattr(negative_guidance, "integers", integers)
    monkeypatch.setattr(
        negative_guidance, "normal", lambda shape, seed, step, *_: start[step][None]
    )
    monkeypatch.setattr(negative_guidance, "draw", draw)
    monkeypatch.setattr(functional, "mse_loss", mse_loss)
    return seen
