import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
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
from workers.unlearners.gradient_ascent import GradientAscent


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_gradient_difference(pipe, brief):
    """-MSE on the concept's pictures + w · MSE on retained ones."""
    twin, weight = copy.deepcopy(pipe), 3.0
    unlearned = small(GradientAscent, retain_weight=weight, learning_rate=1e-4).unlearn(brief())

    unet = twin.unet
    trained = trainable(unet, lambda name: "attn2." in name)

    def ordinary(prompts, step, stream):
        rows, x, noise, t = noised(twin, noise_pictures(prompts), 2, step, stream)
        return mse(eps(unet, x, t, embed(twin, prompts)[rows]), noise)

    def loss(step):
        return weight * ordinary(RETAIN, step, "retain") - ordinary(FORGET, step, "forget")

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-4), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)
