import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    SAMPLER_STEPS,
    eps,
    fixed,
    minimise,
    mse,
    partly_denoised,
    pick,
)
from workers.diffusion.text import embed
from workers.editing.adapters import GatedLora
from workers.unlearners.spm import SPM, latent_anchors


def attach(unet, values, scale):
    """y + scale · up(down(x)) on every Linear and Conv2d inside transformer blocks."""
    handles = []
    for path, layer in unet.named_modules():
        if ".attentions." in path and isinstance(layer, nn.Linear | nn.Conv2d):
            down, up = values[f"{path}.down"], values[f"{path}.up"]
            beside = functional.linear if isinstance(layer, nn.Linear) else functional.conv2d
            handles.append(
                layer.register_forward_hook(
                    lambda _module, args, y, down=down, up=up, beside=beside: (
                        y + scale * beside(beside(args[0], down), up)
                    )
                )
            )
    return handles


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """MSE(ε_spm(c), ε*(∅) - η (ε*(c) - ε*(∅))) + w · MSE(ε_spm(c_a), ε*(c_a))."""
    twin, eta, weight, scale, rate = copy.deepcopy(pipe), 0.8, 5.0, 0.9, 1e-2
    unlearned = small(
        SPM,
        negative_guidance=eta,
        anchor_weight=weight,
        scale=scale,
        learning_rate=rate,
        sampler_steps=SAMPLER_STEPS,
    ).unlearn(brief())

    original, spm = copy.deepcopy(twin.unet), twin.unet
    start = GatedLora.new(spm, "star", 1, scale, 0).tensors()
    values = {name: nn.Parameter(value) for name, value in start.items()}
    attach(spm, values, scale)
    prompts, (empty,) = embed(twin, FORGET), embed(twin, [""])

    def loss(step):
        c = pick(prompts, 2, step)
        x, t = partly_denoised(twin, spm, c, empty, 3.0, step)
        away = fixed(original, x, t, empty.expand_as(c))
        target = away - eta * (fixed(original, x, t, c) - away)
        c_a = latent_anchors(c, 0, step)
        kept = mse(eps(spm, x, t, c_a), fixed(original, x, t, c_a))
        return mse(eps(spm, x, t, c), target) + weight * kept

    # One step of warm-up, then the cosine's top: the rate is the same in both.
    mean = minimise(torch.optim.Adam(values.values(), lr=rate), loss)
    (edit,) = unlearned.edits
    assert edit.is_gated
    assert edit.parameters().keys() == values.keys()
    for name, value in edit.parameters().items():
        torch.testing.assert_close(value, values[name])
    assert unlearned.numbers["loss"] == pytest.approx(mean)


def test_the_unets_weights_stay_and_its_hooks_are_gone(warm, brief):
    small(SPM).unlearn(brief())
    assert warm.changed() == {}
    assert not any(module._forward_hooks for module in warm.pipe.unet.modules())


def test_the_rate_warms_up_and_falls_in_cosines_from_the_top():
    method = small(SPM, iterations=14, warmup_steps=4, cycles=2)
    rates = [method._rate(step) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == rates[9] == 1.0
    assert rates[4:9] == sorted(rates[4:9], reverse=True)
    assert rates[4:9] == pytest.approx(rates[9:14])


def test_latent_anchors_keep_each_tokens_norm_within_a_fifth(pipe):
    text = embed(pipe, FORGET)
    ratio = latent_anchors(text, 0, 0).norm(dim=-1) / text.norm(dim=-1)
    assert ratio.min() >= 0.8 - 1e-5
    assert ratio.max() <= 1.2 + 1e-5
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_latent_anchors_are_other_directions_at_every_step(pipe):
    text = embed(pipe, FORGET)
    first, second = (latent_anchors(text, 0, step) for step in (0, 1))
    cosine = functional.cosine_similarity
    assert cosine(first.flatten(1), text.flatten(1)).abs().max() < 0.3
    assert cosine(first.flatten(1), second.flatten(1)).abs().max() < 0.3
