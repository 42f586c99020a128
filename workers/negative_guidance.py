"""Training against negatively guided predictions: ESD's loop."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.denoise import (
    Predict,
    ddim,
    denoise,
    guide,
    guided,
    latent_shape,
    predict_pair,
)
from workers.rng import integers, normal
from workers.selection import Group, select
from workers.text import embed
from workers.unlearners.base import Erasure

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from workers.unlearners.esd import ESDSettings

STEPS_PER_REPORT = 10


def erased_target(concept: Tensor, anchor: Tensor, eta: float) -> Tensor:
    """ESD's target ε*(a) - η (ε*(c) - ε*(a)): guidance with scale -η.

    Code that writes it as ε*(c) - n (ε*(c) - ε*(a)) means n = η + 1. For v-prediction the same
    combination holds, since v is affine in ε at given x_t and t.
    """
    return guide(concept, anchor, -eta)


def train(erasure: Erasure, settings: ESDSettings, group: Group) -> dict[str, float]:
    """Run ESD and leave the UNet in evaluation mode without gradients.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    unet = erasure.pipe.unet.eval().requires_grad_(False)
    frozen = copy.deepcopy(unet)
    chosen = list(select(unet, group).values())
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        return _loop(erasure, settings, chosen, frozen)
    finally:
        unet.requires_grad_(False)
        unet.zero_grad(set_to_none=True)


def _loop(
    erasure: Erasure,
    settings: ESDSettings,
    parameters: list[nn.Parameter],
    frozen: UNet2DConditionModel,
) -> dict[str, float]:
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    prompts = embed(erasure.pipe, erasure.prompts)
    empty, anchor = embed(erasure.pipe, ["", settings.erase_from or ""])
    total, pending = settings.iterations, []
    for step in range(total):
        loss = _loss(erasure, settings, frozen, prompts, empty, anchor, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pending.append(loss.detach())
        if len(pending) >= STEPS_PER_REPORT or step + 1 == total:
            mean = _mean_of(pending, step + 1)
            erasure.progress(step + 1, total, {"loss": mean})
            pending.clear()
    return {"loss": mean}


def _loss(
    erasure: Erasure,
    settings: ESDSettings,
    frozen: UNet2DConditionModel,
    prompts: Tensor,
    empty: Tensor,
    anchor: Tensor,
    step: int,
) -> Tensor:
    """One step's loss. Prompts (n, tokens, width); empty and anchor (tokens, width)."""
    unet, count, at = erasure.pipe.unet, settings.batch_size, (erasure.seed, step)
    rows = integers(len(prompts), count, *at, "esd prompts", prompts.device)
    text = prompts[rows]
    with torch.no_grad():
        drawer = unet if settings.x_from == "student" else frozen
        predict = guided(drawer, text, empty.expand_as(text), settings.start_guidance)
        latents, timestep = _partly_denoised(erasure, settings, predict, step)
        concept, from_anchor = predict_pair(frozen, latents, timestep, text, anchor.expand_as(text))
        target = erased_target(concept, from_anchor, settings.negative_guidance)
    predicted = unet(latents, timestep, encoder_hidden_states=text).sample
    return functional.mse_loss(predicted, target)


def _partly_denoised(
    erasure: Erasure, settings: ESDSettings, predict: Predict, step: int
) -> tuple[Tensor, int]:
    """Latents (batch, c, h, w) after k steps from noise, and the time step they stand at."""
    pipe, at = erasure.pipe, (erasure.seed, step)
    scheduler = ddim(pipe, settings.sampler_steps)
    k = int(integers(settings.sampler_steps, 1, *at, "esd k"))
    shape = (settings.batch_size, *latent_shape(pipe))
    noise = normal(shape, *at, "esd noise", pipe.device) * scheduler.init_noise_sigma
    return denoise(predict, scheduler, noise, k), int(scheduler.timesteps[k])


def _mean_of(losses: list[Tensor], step: int) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise FloatingPointError(
            f"the loss is {mean} by step {step}; lower the unlearner's learning_rate"
        )
    return mean
