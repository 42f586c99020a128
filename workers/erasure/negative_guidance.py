"""ESD's core: partly denoised latents, and targets that are guided away from a concept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from workers.diffusion.denoise import (
    NoisePredictor,
    ddim,
    guide,
    guided,
    latent_shape,
    noise_pair,
    walk,
)
from workers.diffusion.rng import integers, normal
from workers.erasure.stops import Stops, at_the_samplers_steps

if TYPE_CHECKING:
    from workers.interfaces.pipeline import UNet
    from workers.interfaces.unlearner import Erasure


class DrawSettings(Protocol):
    """How x_t is drawn."""

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
    stops: Stops = at_the_samplers_steps,
    stream: str = "",
    noise: str = "",
    shape: tuple[int, int, int] | None = None,
) -> tuple[Tensor, int]:
    """x_t (batch, c, h, w) that `unet` draws towards `text` (batch, tokens, width), and t.

    The stop is shared by the batch. `stream` tells apart several drawings of one step, `noise`
    those of them that have one stop and t but each its own noise. The latents' `shape` is the
    UNet's own if none is given.
    """
    pipe, at = erasure.pipe, (erasure.seed, step)
    scheduler = ddim(pipe, settings.sampler_steps)
    spacing = pipe.scheduler.config.num_train_timesteps // settings.sampler_steps
    possible = stops(scheduler.timesteps.tolist(), spacing)
    walked, evaluated = possible[int(integers(len(possible), 1, *at, f"denoised steps{stream}"))]
    timestep = evaluated[int(integers(len(evaluated), 1, *at, f"time step{stream}"))]
    start = normal(
        (len(text), *(shape or latent_shape(pipe))),
        *at,
        f"initial noise{stream}{noise}",
        pipe.device,
    )
    latents = start.to(pipe.unet.dtype) * scheduler.init_noise_sigma
    predict = guided(unet, text, empty.expand_as(text), settings.start_guidance)
    return walk(predict, scheduler, latents, walked), timestep


@torch.no_grad()
def erased_noise(
    frozen: NoisePredictor, latents: Tensor, timestep: int, text: Tensor, anchor: Tensor, eta: float
) -> Tensor:
    """`erased_target` of the frozen model at x_t; `anchor` (tokens, width) is ∅ or a stand-in."""
    concept, away = noise_pair(frozen, latents, timestep, text, anchor.expand_as(text))
    return erased_target(concept, away, eta)


@torch.no_grad()
def erased_noise_from(
    frozen: NoisePredictor,
    latents: Tensor,
    timestep: int,
    text: Tensor,
    empty: Tensor,
    eta: float,
    erased_from: Tensor,
) -> Tensor:
    """ε*(f) - (η + 1) (ε*(c) - ε*(∅)): the concept erased from f, texts (batch, tokens, width).

    With f the concept itself it is `erased_noise`.
    """
    concept, nothing = noise_pair(frozen, latents, timestep, text, empty.expand_as(text))
    return frozen(latents, timestep, erased_from) - (eta + 1) * (concept - nothing)


def draw_rows(text: Tensor, count: int, seed: int, step: int, stream: str = "prompts") -> Tensor:
    """`count` rows of embeddings (n, tokens, width), drawn with replacement."""
    return text[integers(len(text), count, seed, step, stream, text.device)]
