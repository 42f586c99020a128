import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    assert_same,
    attention,
    minimise,
    noise_pictures,
)
from workers.diffusion.rng import generator, integers, normal
from workers.diffusion.text import embed
from workers.editing.adapters import GatedLora
from workers.unlearners.mace import MACE, attention_inside, surroundings

MAPPED = ("a blue circle", "a red blue circle")
PROJECTIONS = ("attn2.to_k", "attn2.to_v")


def projections(unet):
    return {p: m.weight for p, m in unet.named_modules() if p.endswith(PROJECTIONS)}


def gram(pipe, prompts):
    tokens = embed(pipe, prompts).flatten(0, 1).double()
    return tokens.T @ tokens


def caption_sums(pipe):
    captions = {"general": ["a square", "two hearts"], "domain": ["a green arrow"]}
    return {name: gram(pipe, prompts) for name, prompts in captions.items()}


def left_half(count):
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, :, :16] = True
    return masks


def refined(pipe, lam, scale, prior):
    """(λ W + Σ W t sᵀ + p W P)(λ I + Σ s sᵀ + p P)⁻¹ over the tokens around the concept."""
    star, mapped = embed(pipe, FORGET), embed(pipe, MAPPED)
    s = torch.cat([star[0, :2], star[0, 3:15], star[1, :3], star[1, 4:15]])
    t = torch.cat([mapped[0, :2], mapped[0, 4:], mapped[1, :3], mapped[1, 5:]])
    inverse = torch.linalg.inv(lam * torch.eye(64) + s.T @ s + scale * prior)
    for weight in projections(pipe.unet).values():
        weight.data = (lam * weight + weight @ (t.T @ s + scale * prior)) @ inverse


def lora(pipe, rate):
    """AdamW on Σ over layers of ‖attention to the star inside the mask‖²; the ΔW by path."""
    unet, text, clean = pipe.unet, embed(pipe, FORGET), noise_pictures(FORGET).latents
    start = GatedLora.new(unet, "star", 1, 1.0, 0, only=PROJECTIONS).tensors()
    factors = {name: nn.Parameter(value) for name, value in start.items()}
    weights, star = projections(unet), torch.tensor([2, 3])
    t_all = torch.arange(1000.0)
    late = torch.sigmoid(0.05 * (t_all - 200)) - torch.sigmoid(0.05 * (t_all - 400))

    def delta(path):
        return factors[f"{path}.up"] @ factors[f"{path}.down"]

    def loss(step):
        rows = integers(2, 2, 0, step, "pictures")
        t = torch.multinomial(late, 2, True, generator=generator(0, step, "timesteps"))
        kept = pipe.scheduler.alphas_cumprod.to(clean)[t].view(-1, 1, 1, 1)
        noise = normal(clean[rows].shape, 0, step, "noise")
        x = kept.sqrt() * clean[rows] + (1 - kept).sqrt() * noise
        moved = {f"{path}.weight": weight + delta(path) for path, weight in weights.items()}
        given = {"encoder_hidden_states": text[rows]}
        maps = attention(unet, lambda: functional_call(unet, moved, (x, t), given))
        total = 0
        for probs in maps.values():
            side = round(probs.shape[2] ** 0.5)
            inside = functional.max_pool2d(left_half(2)[:, None].double(), 32 // side).flatten(2)
            muted = probs[range(2), :, :, star[rows]] * inside
            total = total + muted.square().sum() / 2
        return total

    mean = minimise(torch.optim.AdamW(factors.values(), lr=rate, weight_decay=1e-2), loss)
    return {path: delta(path).detach() for path in weights}, mean


@pytest.mark.usefixtures("double_precision")
def test_the_three_parts_are_the_published_equations(pipe, brief):
    """Part 3: (λ W + Σ (W + ΔW) e eᵀ + s W P)(λ I + Σ e eᵀ + s P)⁻¹, W being part 1's result."""
    twin, lam, scale, weight, rate = copy.deepcopy(pipe), 0.4, 0.02, 3.0, 0.05
    sums = caption_sums(pipe)
    materials = {"pictures": noise_pictures(FORGET), "masks": left_half(2), **sums}
    unlearned = small(
        MACE, lam=lam, prior_scale=scale, domain_weight=weight, learning_rate=rate
    ).unlearn(brief(materials, anchor_prompts=MAPPED))

    prior = sums["general"] + weight * sums["domain"]
    refined(twin, lam, scale, prior)
    deltas, mean = lora(twin, rate)
    e = gram(twin, FORGET)
    inverse = torch.linalg.inv(lam * torch.eye(64) + e + scale * prior)
    for path, value in projections(twin.unet).items():
        value.data = (lam * value + (value + deltas[path]) @ e + scale * value @ prior) @ inverse
    assert_same(unlearned, twin, [f"unet.{path}.weight" for path in deltas], mean)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("variant", "power"), [("paper", 1), ("released", 2)])
def test_the_released_variant_scales_the_refinements_prior_twice(pipe, brief, variant, power):
    twin, sums = copy.deepcopy(pipe), caption_sums(pipe)
    unlearned = small(MACE, variant=variant, lam=0.4, prior_scale=0.3, iterations=0).unlearn(
        brief(sums, anchor_prompts=MAPPED)
    )
    refined(twin, 0.4, 0.3**power, sums["general"])
    assert_same(unlearned, twin, [f"unet.{path}.weight" for path in projections(twin.unet)])


def test_a_concept_mapped_to_itself_with_a_lora_that_is_zero_is_the_identity(warm, brief):
    masks = {"pictures": noise_pictures(FORGET), "masks": left_half(2)}
    method = small(MACE, learning_rate=1e-30)
    unlearned = method.unlearn(brief(masks | caption_sums(warm.pipe), anchor_prompts=FORGET))
    warm.put(unlearned.edits)
    assert warm.changed() == {}


def test_tokens_after_the_concept_are_matched_from_its_end(pipe, brief):
    erasure = brief(prompts=("a star",), anchor_prompts=("a blue circle",))
    sources, targets = surroundings(erasure)
    star, circle = embed(pipe, ["a star", "a blue circle"])
    assert torch.equal(sources, torch.cat([star[:2], star[3:15]]))
    assert torch.equal(targets, torch.cat([circle[:2], circle[4:]]))


def test_late_timesteps_peak_between_200_and_400():
    drawn = small(MACE, batch_size=20_000)._timesteps(1000, 0, 0)
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1000)
    assert counts[2:4].sum() > 0.85 * len(drawn)
    assert counts[2:4].min() > 2 * counts[[0, 1, 4, 5, 6, 7, 8, 9]].max()


def test_uniform_timesteps_are_uniform():
    drawn = small(MACE, batch_size=20_000, timesteps="uniform")._timesteps(1000, 0, 0)
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1000)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_attention_outside_the_mask_or_to_other_words_is_free():
    maps = {"layer": torch.zeros(1, 2, 4, 3)}
    maps["layer"][..., 2] = 1.0
    maps["layer"][0, :, 1, 1] = 1.0  # the upper right cell
    words, masks = torch.tensor([[False, True, False]]), torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    assert attention_inside(maps, words, masks).item() == 0
    maps["layer"][0, :, 0, 1] = 0.5
    assert attention_inside(maps, words, masks).item() == pytest.approx(2 * 0.25)
    masks[:, 0, 7] = True
    assert attention_inside(maps, words, masks).item() == pytest.approx(2 * 0.25 + 2)


def test_it_runs_on_the_pictures_masks_and_sums_that_it_asks_for(warm, erasure):
    method = small(MACE)
    unlearned = method.unlearn(erasure(method))
    assert unlearned.numbers["condition"] > 1
    warm.put(unlearned.edits)
    expected = {f"unet.{path}.weight" for path in projections(warm.pipe.unet)}
    assert set(warm.changed()) == expected
