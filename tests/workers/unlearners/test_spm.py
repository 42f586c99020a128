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
from workers.unlearners.spm import SPM, counted, latent_anchors, smaller_shape, with_empty


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
    decay = 0.1
    unlearned = small(
        SPM,
        negative_guidance=eta,
        anchor_weight=weight,
        scale=scale,
        learning_rate=rate,
        weight_decay=decay,
        warmup_steps=0,
        cycles=2,
        anchors=2,
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
        c_a = latent_anchors(c, 2, 0, step)
        kept = sum(mse(eps(spm, x, t, a), fixed(original, x, t, a)) for a in c_a.unbind(1)) / 2
        return mse(eps(spm, x, t, c), target) + weight * kept

    # Two cycles in two steps: the rate is at the cosine's top in both.
    adamw = torch.optim.AdamW(values.values(), lr=rate, weight_decay=decay)
    mean = minimise(adamw, loss)
    (edit,) = unlearned.edits
    assert edit.is_gated
    assert edit.variant == "paper"
    assert edit.parameters().keys() == values.keys()
    for name, value in edit.parameters().items():
        torch.testing.assert_close(value, values[name])
    assert unlearned.numbers["loss"] == pytest.approx(mean)


def test_the_unets_weights_stay_and_its_hooks_are_gone(warm, brief):
    small(SPM).unlearn(brief())
    assert warm.changed() == {}
    assert not any(module._forward_hooks for module in warm.pipe.unet.modules())


def test_the_rate_warms_up_from_nothing_and_falls_in_cosines_from_the_top():
    method = small(SPM, iterations=14, warmup_steps=4, cycles=2)
    rates = [method.rate(step) for step in range(14)]
    assert rates[:4] == [0, 0.25, 0.5, 0.75]
    assert rates[4] == rates[9] == 1.0
    assert rates[4:9] == sorted(rates[4:9], reverse=True)
    assert rates[4:9] == pytest.approx(rates[9:14])


def test_as_released_half_of_the_anchors_give_way_to_the_empty_prompt():
    assert counted(3, "paper") == [0, 1, 2]
    assert [counted(n, "released") for n in (1, 2, 3, 4)] == [
        [0], [-1, 1], [1, -1, 2], [-1, 2, -1, 3],
    ]  # fmt: skip
    anchors, empty = torch.arange(1.0, 5.0).view(1, 4, 1, 1), torch.zeros(1, 1)
    assert with_empty(anchors, empty, "released").flatten().tolist() == [0, 3, 0, 4]


def test_a_latent_anchors_whole_norm_is_the_texts_within_a_fifth(pipe):
    text = embed(pipe, FORGET)
    anchors = latent_anchors(text, 50, 0, 0)
    assert anchors.shape == (2, 50, *text.shape[1:])
    ratio = anchors.flatten(2).norm(dim=2) / text.flatten(1).norm(dim=1)[:, None]
    assert ratio.min() >= 0.8 - 1e-5
    assert ratio.max() <= 1.2 + 1e-5
    assert ratio.std() == pytest.approx(0.4 / 12**0.5, rel=0.2)
    # Not a token at a time: there the norms are all about the same, whatever the text's are.
    each = anchors.norm(dim=3)
    assert (each.std(dim=2) / each.mean(dim=2)).max() < 0.2


def test_latent_anchors_are_other_directions_at_every_step(pipe):
    text = embed(pipe, FORGET)
    first, second = (latent_anchors(text, 1, 0, step).flatten(1) for step in (0, 1))
    cosine = functional.cosine_similarity
    assert cosine(first, text.flatten(1)).abs().max() < 0.3
    assert cosine(first, second).abs().max() < 0.3


def test_a_latent_anchor_like_the_text_is_drawn_again(monkeypatch):
    """Of embeddings that are the text's own direction or the opposite one, the second is left."""
    text, turns = torch.ones(1, 2, 3), []

    def drawn(shape, seed, step, stream, device):
        turns.append(stream)
        return torch.full(shape, 1.0 if len(turns) < 3 else -1.0)

    monkeypatch.setattr("workers.diffusion.rng.normal", drawn)
    assert (latent_anchors(text, 1, 0, 0) < 0).all()
    assert len(set(turns)) == 3


def test_smaller_latents_are_four_to_seven_eighths_a_side(pipe, brief):
    shapes = {smaller_shape(pipe, 0, step) for step in range(200)}
    assert shapes == {(4, height, width) for height in range(4, 8) for width in range(4, 8)}
    made = small(SPM, sizes="smaller").unlearn(brief())
    assert made.numbers["loss"] > 0
