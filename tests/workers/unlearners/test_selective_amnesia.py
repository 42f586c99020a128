import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    RETAIN,
    assert_same,
    eps,
    minimise,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.text import embed
from workers.unlearners.selective_amnesia import SelectiveAmnesia

DRAWN = 3
PLACES = pytest.mark.usefixtures("double_precision")


@PLACES
def test_two_iterations_are_the_published_equation(pipe, brief):
    """-E_q[log p(x|c_f)] - E[log p(x|c_r)] + λ/2 Σ F (θ - θ*)², each -log p the simple loss."""
    twin, weight = copy.deepcopy(pipe), 1e6
    unlearned = small(
        SelectiveAmnesia, learning_rate=1e-4, ewc_weight=weight, fisher_pictures=DRAWN
    ).unlearn(brief({"surrogate": noise_pictures(ANCHOR)}))

    unet = twin.unet
    concept, retained = embed(twin, FORGET), embed(twin, RETAIN)
    trained = trainable(unet, lambda name: "attn2." in name)
    start = {name: value.detach().clone() for name, value in trained.items()}
    everything, text = noise_pictures(FORGET), torch.cat([concept, retained])
    both = type(everything)(
        torch.cat([everything.latents, noise_pictures(RETAIN).latents]),
        everything.images,
        [*FORGET, *RETAIN],
    )
    fisher = {name: torch.zeros_like(value) for name, value in trained.items()}
    for number in range(DRAWN):
        rows, x, noise, t = noised(twin, both, 1, number, "fisher")
        value = mse(eps(unet, x, t, text[rows]), noise)
        slopes = torch.autograd.grad(value, list(trained.values()))
        for name, slope in zip(trained, slopes, strict=True):
            fisher[name] += slope**2 / DRAWN

    def loss(step):
        rows, x, noise, t = noised(twin, noise_pictures(ANCHOR), 2, step, "surrogate")
        instead = mse(eps(unet, x, t, concept[rows]), noise)
        rows, x, noise, t = noised(twin, noise_pictures(RETAIN), 2, step, "retain")
        kept = mse(eps(unet, x, t, retained[rows]), noise)
        held = sum((fisher[n] * (v - start[n]) ** 2).sum() for n, v in trained.items())
        return instead + kept + weight / 2 * held

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-4), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


@PLACES
def test_the_weight_of_consolidation_holds_the_weights(warm, erasure):
    def moved(weight):
        method = small(SelectiveAmnesia, ewc_weight=weight, fisher_pictures=2, iterations=4)
        warm.reset()
        warm.put(method.unlearn(erasure(method)).edits)
        base = warm.base_state()
        return sum(float((v - base[n]).square().sum()) for n, v in warm.changed().items())

    assert moved(1e12) < moved(0.0)
