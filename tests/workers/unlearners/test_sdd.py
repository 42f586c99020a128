import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    SAMPLER_STEPS,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    partly_denoised,
    pick,
    trainable,
)
from workers.diffusion.text import embed
from workers.unlearners.sdd import SDD


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """MSE(sg[ε_θ(z_t, ∅)], ε_θ(z_t, c)), z_t drawn by the moving average, which is the result."""
    twin, decay, clip = copy.deepcopy(pipe), 0.7, 1e-3
    unlearned = small(
        SDD,
        ema_decay=decay,
        clip_norm=clip,
        sampler_steps=SAMPLER_STEPS,
        learning_rate=5e-4,
        weight_decay=1e-4,
    ).unlearn(brief())

    student, teacher = twin.unet, copy.deepcopy(twin.unet)
    prompts, (empty,) = embed(twin, FORGET), embed(twin, [""])
    trained = trainable(student, lambda name: "attn2." in name)
    average = {name: value for name, value in teacher.named_parameters() if name in trained}

    def loss(step):
        c = pick(prompts, 2, step)
        z, t = partly_denoised(twin, teacher, c, empty, 3.0, step)
        return mse(eps(student, z, t, c), fixed(student, z, t, empty.expand_as(c)))

    class ClipThenFollow(torch.optim.AdamW):
        def step(self):
            torch.nn.utils.clip_grad_norm_(trained.values(), clip)
            super().step()
            for name, value in average.items():
                value.data = decay * value.data + (1 - decay) * trained[name].data

    mean = minimise(ClipThenFollow(trained.values(), lr=5e-4, weight_decay=1e-4), loss)
    twin.unet = teacher
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_the_result_is_the_moving_average_and_not_the_student(pipe, brief):
    before = {name: value.clone() for name, value in pipe.unet.named_parameters()}
    decay = 0.9
    (edit,) = small(SDD, iterations=1, ema_decay=decay).unlearn(brief()).edits
    student = dict(pipe.unet.named_parameters())
    for name, value in edit.values.items():
        path = name.removeprefix("unet.")
        assert not torch.equal(student[path], before[path])
        expected = decay * before[path] + (1 - decay) * student[path]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)
