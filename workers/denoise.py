"""Diffusion's own functions: samplers, guidance and training targets, a few lines each.

One convention holds everywhere: a sampler's steps count from the noisy side. Step k of N is the
one that starts at `scheduler.timesteps[k]`; k = 0 is pure noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

Predict = Callable[[Tensor, int], Tensor]
"""(latents, timestep) -> the model's prediction, of the latents' shape."""


def ddim(pipe: StableDiffusionPipeline, steps: int) -> DDIMScheduler:
    """A fresh DDIM sampler (Song et al. 2021, eta 0) of `steps` steps on the pipeline's schedule.

    Latents have no natural bounds, so they are clipped only if the pipeline's own configuration
    asks for it; DDIM's default would.
    """
    from diffusers import DDIMScheduler

    config = pipe.scheduler.config
    scheduler = DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    scheduler.set_timesteps(steps)
    return scheduler


def latent_shape(pipe: StableDiffusionPipeline) -> tuple[int, int, int]:
    """(channels, height, width) of the latents that the pipeline's UNet was made for."""
    config = pipe.unet.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return config.in_channels, height, width


def training_scheduler(pipe: StableDiffusionPipeline) -> DDPMScheduler:
    """The pipeline's noise schedule as the forward process (Ho et al. 2020), for training."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def training_target(
    scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the UNet should predict: the noise, or v (Salimans and Ho 2022). Shape of `latents`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction' but got {kind!r}")


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): u + scale · (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def predict_pair(
    unet: UNet2DConditionModel, latents: Tensor, timestep: int, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor]:
    """Predictions under two texts in one pass; latents (n, c, h, w), texts (n, tokens, width)."""
    both = unet(
        torch.cat([latents, latents]), timestep, encoder_hidden_states=torch.cat([first, second])
    ).sample
    a, b = both.chunk(2)
    return a, b


def guided(unet: UNet2DConditionModel, text: Tensor, empty: Tensor, scale: float) -> Predict:
    """The UNet under guidance towards `text` and away from `empty`, both (n, tokens, width).

    At a scale of 1 or less there is nothing to guide, and the pass for `empty` is left out, as
    Stable Diffusion's pipeline does.
    """

    def predict(latents: Tensor, timestep: int) -> Tensor:
        if scale <= 1:
            return unet(latents, timestep, encoder_hidden_states=text).sample
        conditional, unconditional = predict_pair(unet, latents, timestep, text, empty)
        return guide(conditional, unconditional, scale)

    return predict


def denoise(predict: Predict, scheduler: DDIMScheduler, latents: Tensor, steps: int) -> Tensor:
    """Take the first `steps` steps of `scheduler` from noise `latents` (n, c, h, w).

    The result is at the noise level of `scheduler.timesteps[steps]`, and that is the time step at
    which it must be evaluated (ESD-type methods); after all steps it is the clean picture.
    """
    # Integers, read once: a time step that stays on a GPU would be waited for at every step.
    for timestep in scheduler.timesteps[:steps].tolist():
        latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
    return latents
