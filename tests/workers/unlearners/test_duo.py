import copy

import pytest
import torch
from diffusers import DDIMScheduler

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.unlearners.duo import DUO, preference

BETA, LAM, GUIDANCE, STEPS, BACK = 20.0, 3.0, 2.5, 4, 3


@torch.no_grad()
def edited(twin):
    """SDEdit: noise each picture to where the last steps begin, then denoise to the anchor."""
    pictures = noise_pictures(FORGET)
    sampler = DDIMScheduler.from_config(twin.scheduler.config)
    sampler.set_timesteps(STEPS)
    steps = sampler.timesteps[STEPS - BACK :]
    noise = normal(pictures.latents.shape, 0, 0, "sdedit")
    kept = twin.scheduler.alphas_cumprod.to(noise)[steps[0]]
    x = kept.sqrt() * pictures.latents + (1 - kept).sqrt() * noise
    towards, away = embed(twin, ANCHOR), embed(twin, FORGET)
    for t in steps:
        a, b = eps(twin.unet, x, t, towards), eps(twin.unet, x, t, away)
        x = sampler.step(b + GUIDANCE * (a - b), t, x).prev_sample
    return x


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """-log σ(-β (d(x⁺) - d(x⁻))) + λ MSE(ε_θ(x_T), ε*(x_T)), one noise and t for both of a pair."""
    twin, frozen = copy.deepcopy(pipe), copy.deepcopy(pipe.unet)
    settings = {"edit_guidance": GUIDANCE, "edit_steps": STEPS, "edit_strength": BACK / STEPS}
    unlearned = small(DUO, beta=BETA, prior_weight=LAM, learning_rate=1e-4, **settings).unlearn(
        brief()
    )

    unet, safe, text = twin.unet, edited(twin), embed(twin, FORGET)
    trained = trainable(unet, lambda name: "attn2." in name)

    def loss(step):
        rows, worse, noise, t = noised(twin, noise_pictures(FORGET), 2, step, "pairs")
        kept = twin.scheduler.alphas_cumprod.to(noise)[t].view(-1, 1, 1, 1)
        better = kept.sqrt() * safe[rows] + (1 - kept).sqrt() * noise
        c = text[rows]

        def d(x):
            now, before = eps(unet, x, t, c), fixed(frozen, x, t, c)
            return ((now - noise) ** 2 - (before - noise) ** 2).mean((1, 2, 3))

        chosen = torch.sigmoid(-BETA * (d(better) - d(worse)))
        held = mse(eps(unet, noise, 999, c), fixed(frozen, noise, 999, c))
        return -chosen.log().mean() + LAM * held

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-4), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_before_the_first_step_neither_picture_is_preferred():
    zero = torch.zeros(3)
    assert preference(zero, zero, 500.0).item() == pytest.approx(torch.log(torch.tensor(2.0)))
    assert preference(zero - 1, zero, 5.0) < preference(zero, zero, 5.0)
    assert preference(zero + 1, zero, 5.0) > preference(zero, zero, 5.0)
