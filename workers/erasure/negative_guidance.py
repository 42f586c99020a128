"""ESD's core: partly denoised latents, and targets that are guided away from a concept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

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

if TYPE_CHECKING:
    from workers.interfaces.pipeline import UNet
    from workers.interfaces.unlearner import Erasure


class DrawSettings(Protocol):
    """How x_t is drawn."""

    @property
    def start_guidance(self) -> float: ...

    @property
    def sampler_steps(self) -> int: ...


class Stop(NamedTuple):
    """A place on the way from noise to a picture at which x_t may be taken."""

    walked: Sequence[int]
    """The sampler's time steps that are taken from noise."""
    evaluated: range
    """Of these time steps one, at random, is the t at which x_t is evaluated."""


Stops = Callable[[Sequence[int], int], Sequence[Stop]]
"""(a sampler's time steps from the noisy side, how far apart they are) -> every `Stop`, each as
likely as the others."""


def at_the_samplers_steps(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t after the first k of N steps, k in 0 … N - 1, at the time step where step k starts."""
    return [Stop(timesteps[:k], range(t, t + 1)) for k, t in enumerate(timesteps)]


def as_in_2023(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as ESD's code of 2023 draws it, and what was built on that code.

    The sampler's first time step is left out, and x_t is taken after N - j of the others, j in
    0 … N - 1 (all N - 1 of them at j = 0, as at j = 1). t is uniform in [j, j + 1) spacings, for
    j ≥ 2 two to three spacings less one above the level at which x_t stands: with N = 50, 39 to 58.
    """
    steps, rest = len(timesteps), timesteps[1:]
    return [Stop(rest[: steps - j], range(spacing * j, spacing * (j + 1))) for j in range(steps)]


def as_sdd_released(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as SDD's released code draws it: after the first k of N steps, k in 0 … N - 1.

    t is uniform in [N - 1 - k, N - k) spacings, the sampler's step on which x_t stands. At k = 0,
    where x_t should be pure noise, the code runs all N steps, and a clean picture is evaluated at
    the highest t.
    """
    steps = len(timesteps)
    return [
        Stop(timesteps[: k or steps], range(spacing * (steps - 1 - k), spacing * (steps - k)))
        for k in range(steps)
    ]


def as_stereo_released(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as STEREO's released code draws it: after the first k of N steps, k in 1 … N - 2.

    t is a step less one above the level at which x_t stands.
    """
    return [
        Stop(timesteps[:k], range(t + spacing - 1, t + spacing))
        for k, t in list(enumerate(timesteps))[1:-1]
    ]


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


def drawing_passes(
    sampler_steps: int, batch_size: int, stops: Stops = at_the_samplers_steps
) -> int:
    """UNet passes of drawing x_t under guidance, on average over the stops."""
    possible = stops(range(sampler_steps), 1)
    return round(2 * batch_size * sum(len(stop.walked) for stop in possible) / len(possible))
