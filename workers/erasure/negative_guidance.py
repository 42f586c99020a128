"""ESD's core: partly denoised latents, and targets that are guided away from a concept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from workers.diffusion.denoise import NoisePredictor, guide, guided, noise_pair, partly_denoised
from workers.diffusion.rng import integers

if TYPE_CHECKING:
    from workers.interfaces.pipeline import UNet
    from workers.interfaces.unlearner import Erasure


class DrawSettings(Protocol):
    """How x_t is drawn."""

    @property
    def batch_size(self) -> int: ...

    @property
    def start_guidance(self) -> float: ...

    @property
    def sampler_steps(self) -> int: ...


def erased_target(concept: Tensor, anchor: Tensor, eta: float) -> Tensor:
    """ESD's target ε*(a) - η (ε*(c) - ε*(a)): guidance with scale -η.

    Code that writes it as ε*(c) - n (ε*(c) - ε*(a)) means n = η + 1.
    """
    return guide(concept, anchor, -eta)


@torch.no_grad()
def draw(
    erasure: Erasure,
    settings: DrawSettings,
    unet: UNet,
    text: Tensor,
    empty: Tensor,
    step: int,
) -> tuple[Tensor, int]:
    """x_t (batch, c, h, w) that `unet` draws towards `text` (batch, tokens, width), and t."""
    predict = guided(unet, text, empty.expand_as(text), settings.start_guidance)
    return partly_denoised(
        erasure.pipe, predict, settings.batch_size, settings.sampler_steps, erasure.seed, step
    )


@torch.no_grad()
def erased_noise(
    frozen: NoisePredictor, latents: Tensor, timestep: int, text: Tensor, anchor: Tensor, eta: float
) -> Tensor:
    """`erased_target` of the frozen model at x_t; `anchor` (tokens, width) is ∅ or a stand-in."""
    concept, away = noise_pair(frozen, latents, timestep, text, anchor.expand_as(text))
    return erased_target(concept, away, eta)


def draw_rows(text: Tensor, count: int, seed: int, step: int, stream: str = "prompts") -> Tensor:
    """`count` rows of embeddings (n, tokens, width), drawn with replacement."""
    return text[integers(len(text), count, seed, step, stream, text.device)]


def drawing_passes(sampler_steps: int, batch_size: int) -> int:
    """UNet passes of drawing x_t under guidance, on average over k."""
    return batch_size * (sampler_steps - 1)
