import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    SAMPLER_STEPS,
    attention,
    eps,
    fixed,
    minimise,
    mse,
    partly_denoised,
)
from workers.diffusion.rng import integers
from workers.diffusion.soft_prompt import encode, new_soft, token_ids
from workers.diffusion.text import embed
from workers.editing.adapters import Bottlenecks
from workers.unlearners.receler import Receler, object_mask, outside


def attach(unet, values, added):
    """o + up(GELU(down(o))) after each attn2; `added` keeps the second term."""
    for path, module in unet.named_modules():
        if path.endswith(".attn2"):

            def after(_module, _args, o, path=path):
                down, down_bias, up, up_bias = (
                    values[f"{path}.{part}"] for part in ("down", "down_bias", "up", "up_bias")
                )
                added[path] = functional.gelu(o @ down.T + down_bias) @ up.T + up_bias
                return o + added[path]

            module.register_forward_hook(after)


def mask_of(maps, star, threshold):
    """Where the 4 x 4 maps, the nearest to a sixteenth of 8 x 8, look at the star."""
    (probs,) = (p for p in maps.values() if p.shape[2] == 16)
    seen = probs[range(len(star)), :, :, star].mean(dim=1)
    low, high = seen.amin(dim=1, keepdim=True), seen.amax(dim=1, keepdim=True)
    return ((seen - low) / (high - low) > threshold).double().view(-1, 1, 4, 4)


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """ESD's loss at an adversarial prompt + w · Σ ‖added · (1 - M)‖² / area."""
    twin, threshold, weight, rate = copy.deepcopy(pipe), 0.5, 30.0, 1e-2
    unlearned = small(
        Receler,
        mask_threshold=threshold,
        local_weight=weight,
        learning_rate=rate,
        rank=3,
        attack_rate=0.1,
        attack_decay=0.1,
        sampler_steps=SAMPLER_STEPS,
    ).unlearn(brief())

    original, erased, added = copy.deepcopy(twin.unet), twin.unet, {}
    start = Bottlenecks.new(erased, 3, 0).tensors()
    values = {name: nn.Parameter(value) for name, value in start.items()}
    attach(erased, values, added)
    prompts, (empty,), ids = embed(twin, FORGET), embed(twin, [""]), token_ids(twin, FORGET, 1)

    def adversary(x, t, asked, concept, step):
        soft = nn.Parameter(new_soft(twin, 2, 1, 0, step, "soft prompt"))
        optimizer = torch.optim.AdamW([soft], lr=0.1, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            mse(eps(erased, x, t, encode(twin, asked, soft)), concept).backward(inputs=[soft])
            optimizer.step()
        return encode(twin, asked, soft).detach()

    def loss(step):
        rows = integers(2, 2, 0, step, "prompts")
        c = prompts[rows]
        x, t = partly_denoised(twin, erased, c, empty, 3.0, step)
        concept, away = fixed(original, x, t, c), fixed(original, x, t, empty.expand_as(c))
        maps = attention(original, lambda: fixed(original, x, t, c))
        mask = mask_of(maps, torch.tensor([2, 3])[rows], threshold)
        found = eps(erased, x, t, adversary(x, t, ids[rows], concept, step))
        outside = 0
        for o in added.values():
            side = round(o.shape[1] ** 0.5)
            large = mask.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
            away_from = o * (1 - large.flatten(2).mT)
            outside = outside + away_from.square().sum() / o.shape[1] / len(o)
        return mse(found, away - (concept - away)) + weight * outside

    mean = minimise(torch.optim.Adam(values.values(), lr=rate), loss)
    (edit,) = unlearned.edits
    assert edit.parameters().keys() == values.keys()
    for name, value in edit.parameters().items():
        torch.testing.assert_close(value, values[name])
    assert unlearned.numbers["loss"] == pytest.approx(mean)


def test_the_unets_weights_stay_and_its_hooks_are_gone(warm, brief):
    small(Receler).unlearn(brief())
    assert warm.changed() == {}
    assert not any(module._forward_hooks for module in warm.pipe.unet.modules())


def test_the_mask_is_where_the_maps_of_a_sixteenth_look_at_the_words():
    small_map, large_map = torch.zeros(1, 2, 4, 3), torch.rand(1, 2, 16, 3)
    small_map[0, 0, :, 1] = torch.tensor([0.0, 1.0, 0.2, 0.04])
    small_map[0, :, :, 2] = 1.0
    words = torch.tensor([[False, True, False]])
    mask = object_mask({"small": small_map, "large": large_map}, words, 8, 8, 0.1)
    assert mask.tolist() == [[[[0.0, 1.0], [1.0, 0.0]]]]


def test_what_is_added_inside_the_mask_is_free():
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, :] = 1
    added = torch.zeros(1, 16, 3)
    added[:, :8] = 100.0
    assert outside({"layer": added}, mask).item() == 0
    added[:, 8] = 2.0
    assert outside({"layer": added}, mask).item() == pytest.approx(3 * 4 / 16)
