import copy

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    SAMPLER_STEPS,
    attention,
    eps,
    fixed,
    mse,
)
from workers.diffusion.rng import generator, integers, normal
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


@torch.no_grad()
def drawn_as_in_2023(pipe, unet, c, empty, guidance, step):
    """x_t after all but the first of some guided DDIM steps, and a time step above its level."""
    sampler = DDIMScheduler.from_config(pipe.scheduler.config)
    sampler.set_timesteps(SAMPLER_STEPS)
    j = integers(SAMPLER_STEPS, 1, 0, step, "denoised steps").item()
    x = normal((len(c), 4, 8, 8), 0, step, "initial noise")
    for t in sampler.timesteps[1:][: SAMPLER_STEPS - j]:
        towards, away = eps(unet, x, t, c), eps(unet, x, t, empty.expand_as(c))
        x = sampler.step(away + guidance * (towards - away), t, x).prev_sample
    width = 1000 // SAMPLER_STEPS
    return x, width * j + integers(width, 1, 0, step, "time step").item()


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_two_iterations_are_the_published_equation(pipe, brief, variant):
    """ESD's loss at an adversarial text + w · mean of what is added outside the mask."""
    twin, threshold, weight, rate, k = copy.deepcopy(pipe), 0.5, 30.0, 1e-2, 3
    unlearned = small(
        Receler,
        variant=variant,
        mask_threshold=threshold,
        local_weight=weight,
        learning_rate=rate,
        rank=3,
        soft_tokens=k,
        sampler_steps=SAMPLER_STEPS,
    ).unlearn(brief())

    original, erased, added = copy.deepcopy(twin.unet), twin.unet, {}
    start = Bottlenecks.new(erased, 3, 0).tensors()
    values = {name: nn.Parameter(value) for name, value in start.items()}
    attach(erased, values, added)
    prompts, (empty,) = embed(twin, FORGET), embed(twin, [""])
    soft = nn.Parameter(
        torch.rand(1, k, prompts.shape[2], generator=generator(0, 0, "soft tokens"))
    )
    adversary = torch.optim.Adam([soft], lr=0.1, weight_decay=0.1)

    def inserted(c, star):
        if variant == "released":
            return c
        rows = [
            torch.cat([text[: 1 + at], soft[0], text[1 + at + k :]])
            for text, at in zip(c, star, strict=True)
        ]
        return torch.stack(rows)

    def loss(step):
        rows = integers(2, 2, 0, step, "prompts")
        c, star = prompts[rows], [(2, 3)[row] for row in rows]
        x, t = drawn_as_in_2023(twin, erased, c, empty, 3.0, step)
        concept, away = fixed(original, x, t, c), fixed(original, x, t, empty.expand_as(c))
        maps = attention(original, lambda: fixed(original, x, t, c))
        mask = mask_of(maps, star, threshold)
        for turn in range(2):
            found = eps(erased, x, t, inserted(c, star))
            if variant == "paper":
                (soft.grad,) = torch.autograd.grad(mse(found, concept), [soft], retain_graph=True)
                if turn == 0:
                    adversary.step()
        outside = []
        for o in added.values():
            side = round(o.shape[1] ** 0.5)
            large = mask.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
            away_from = 1 - large.flatten(1)
            shares = (away_from * o.square().mean(2)).sum(1) / (away_from.sum(1) + 1e-9)
            outside.append(shares.mean())
        return mse(found, away - (concept - away)) + weight * sum(outside) / len(outside)

    optimizer, losses = torch.optim.Adam(values.values(), lr=rate), []
    for step in range(2):
        optimizer.zero_grad()
        value = loss(step)
        value.backward(inputs=list(values.values()))
        optimizer.step()
        if variant == "paper":
            adversary.step()
        losses.append(value.item())
    (edit,) = unlearned.edits
    assert edit.parameters().keys() == values.keys()
    for name, value in edit.parameters().items():
        torch.testing.assert_close(value, values[name])
    assert unlearned.numbers["loss"] == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_soft_tokens_must_fit_after_the_concept_if_they_reach_the_model(brief, variant):
    method = small(Receler, variant=variant, soft_tokens=14)
    if variant == "released":
        assert method.unlearn(brief()).numbers["loss"] > 0
    else:
        with pytest.raises(ResurgeError, match="reads 12 more; lower receler's soft_tokens"):
            method.unlearn(brief())


def test_the_unets_weights_stay_and_its_hooks_are_gone(warm, brief):
    small(Receler).unlearn(brief())
    assert warm.changed() == {}
    assert not any(module._forward_hooks for module in warm.pipe.unet.modules())


def test_the_mask_is_where_the_maps_of_a_sixteenth_look_at_the_words():
    small_map, large_map = torch.zeros(1, 2, 4, 3), torch.rand(1, 2, 16, 3)
    small_map[0, 0, :, 1] = torch.tensor([0.0, 1.0, 0.25, 0.04])
    small_map[0, :, :, 2] = 1.0
    words = torch.tensor([[False, True, False]])
    for threshold in (0.1, 0.25):  # the threshold itself belongs to the object
        mask = object_mask({"small": small_map, "large": large_map}, words, 8, 8, threshold)
        assert mask.tolist() == [[[[0.0, 1.0], [1.0, 0.0]]]]


def test_what_is_added_inside_the_mask_is_free():
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, :] = 1
    added = torch.zeros(1, 16, 3)
    added[:, :8] = 100.0
    assert outside({"layer": added}, mask).item() == 0
    added[:, 8] = 2.0
    assert outside({"layer": added}, mask).item() == pytest.approx(4 / 8)


def test_a_layer_that_the_mask_covers_costs_nothing():
    assert outside({"layer": torch.ones(2, 16, 3)}, torch.ones(2, 1, 2, 2)).item() == 0
