import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from orchestrator.core.errors import ResurgeError
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
from workers.unlearners import mace
from workers.unlearners.mace import (
    MACE,
    TEMPLATES,
    MACESettings,
    beginning,
    muted_norms,
    outside,
    surroundings,
    timestep_weights,
)

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


def refine(pipe, lam, scale, prior):
    """(λ W + Σ W t sᵀ + p W P)(λ I + Σ s sᵀ + p P)⁻¹ over the tokens around the concept."""
    star, mapped = embed(pipe, FORGET), embed(pipe, MAPPED)
    s = torch.cat([star[0, :2], star[0, 3:15], star[1, :3], star[1, 4:15]])
    t = torch.cat([mapped[0, :2], mapped[0, 4:], mapped[1, :3], mapped[1, 5:]])
    inverse = torch.linalg.inv(lam * torch.eye(64) + s.T @ s + scale * prior)
    for weight in projections(pipe.unet).values():
        weight.data = (lam * weight + weight @ (t.T @ s + scale * prior)) @ inverse


def fuse(pipe, original, deltas, lam, scale, prior):
    """(λ W + (W + ΔW) E + s W⁰ P)(λ I + E + s P)⁻¹, W being part 1's result."""
    e = gram(pipe, FORGET)
    inverse = torch.linalg.inv(lam * torch.eye(64) + e + scale * prior)
    for path, value in projections(pipe.unet).items():
        values = lam * value + (value + deltas[path]) @ e + scale * original[path] @ prior
        value.data = values @ inverse


def lora(pipe, rate):
    """AdamW, clipped at 1, on Σ over layers of ‖attention to the star inside the mask‖²; the ΔW
    by path.
    """
    unet, text, clean = pipe.unet, embed(pipe, FORGET), noise_pictures(FORGET).latents
    factors = {name: nn.Parameter(value) for name, value in beginning(pipe, 1, 0).items()}
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
            cell = 32 // round(probs.shape[2] ** 0.5)
            inside = left_half(2)[:, None, ::cell, ::cell].flatten(2)
            muted = probs[range(2), :, :, star[rows]] * inside
            total = total + muted.square().sum() / 2
        return total

    optimizer = torch.optim.AdamW(factors.values(), lr=rate, weight_decay=1e-2)

    def clip(*_):
        nn.utils.clip_grad_norm_(list(factors.values()), 1.0)

    optimizer.register_step_pre_hook(clip)
    mean = minimise(optimizer, loss)
    return {path: delta(path).detach() for path in weights}, mean


@pytest.mark.usefixtures("double_precision")
def test_the_three_parts_are_the_published_equations(pipe, brief):
    twin, lam, scale, weight, rate = copy.deepcopy(pipe), 0.4, 0.02, 3.0, 0.05
    original = projections(copy.deepcopy(pipe).unet)
    sums = caption_sums(pipe)
    materials = {"pictures": noise_pictures(FORGET), "masks": left_half(2), **sums}
    unlearned = small(
        MACE, lam=lam, prior_scale=scale, domain_weight=weight, learning_rate=rate
    ).unlearn(brief(materials, anchor_prompts=MAPPED))

    prior = sums["general"] + weight * sums["domain"]
    refine(twin, lam, scale, prior)
    deltas, mean = lora(twin, rate)
    fuse(twin, original, deltas, lam, scale, prior)
    assert_same(unlearned, twin, [f"unet.{path}.weight" for path in deltas], mean)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("variant", "power"), [("paper", 1), ("released", 2)])
def test_the_released_variant_scales_the_refinements_prior_twice(pipe, brief, variant, power):
    twin, sums = copy.deepcopy(pipe), caption_sums(pipe)
    original = projections(copy.deepcopy(pipe).unet)
    unlearned = small(MACE, variant=variant, lam=0.4, prior_scale=0.3, iterations=0).unlearn(
        brief(sums, anchor_prompts=MAPPED)
    )
    refine(twin, 0.4, 0.3**power, sums["general"])
    fuse(twin, original, dict.fromkeys(original, 0), 0.4, 0.3, sums["general"])
    assert_same(unlearned, twin, [f"unet.{path}.weight" for path in original])


def test_a_concept_mapped_to_itself_with_a_lora_that_is_zero_is_the_identity(warm, brief):
    masks = {"pictures": noise_pictures(FORGET), "masks": left_half(2)}
    method = small(MACE, learning_rate=1e-30)
    unlearned = method.unlearn(brief(masks | caption_sums(warm.pipe), anchor_prompts=FORGET))
    warm.put(unlearned.edits)
    assert warm.changed() == {}


def test_tokens_after_the_concept_are_matched_from_its_end(pipe, brief):
    erasure = brief(prompts=("a star",), anchor_prompts=("a blue circle",))
    sources, targets = surroundings(erasure, True)
    star, circle = embed(pipe, ["a star", "a blue circle"])
    assert torch.equal(sources, torch.cat([star[:2], star[3:15]]))
    assert torch.equal(targets, torch.cat([circle[:2], circle[4:]]))


def test_words_that_both_concepts_end_with_are_outside(pipe):
    around = outside(pipe.tokenizer, "a red star", "a blue star")
    assert around.tolist() == [[0, 1, *range(3, 16)]] * 2
    longer = outside(pipe.tokenizer, "a star star", "a star")
    assert longer.tolist() == [[0, 1, 2, 4, *range(5, 16)], [0, 1, 2, 3, *range(4, 15)]]


def test_as_released_prompts_with_different_counts_of_tokens_around_are_refused(brief):
    erasure = brief(
        prompts=("a star", "a star and a star"),
        anchor_prompts=("a circle", "a circle and a circle"),
    )
    with pytest.raises(ResurgeError, match="15 in 'a star', 12 in 'a star and a star'; change"):
        surroundings(erasure, True)
    sources, targets = surroundings(erasure, False)
    assert len(sources) == len(targets) == 15 + 12


def drawn_timesteps(brief, kind):
    method = small(MACE, batch_size=20_000, timesteps=kind)
    _, _, timesteps = method._noised(brief({"pictures": noise_pictures(FORGET)}), 0)
    return torch.histc(timesteps.float(), bins=10, min=0, max=1000)


def test_late_timesteps_peak_between_200_and_400(brief):
    counts = drawn_timesteps(brief, "late")
    assert counts[2:4].sum() > 0.85 * 20_000
    assert counts[2:4].min() > 2 * counts[[0, 1, 4, 5, 6, 7, 8, 9]].max()


def test_uniform_timesteps_are_uniform(brief):
    counts = drawn_timesteps(brief, "uniform")
    assert counts.min() > 1800
    assert counts.max() < 2200
    assert timestep_weights("uniform", 4).tolist() == [0.25] * 4


def test_attention_outside_the_mask_or_to_other_words_is_free():
    maps = {"layer": torch.zeros(1, 2, 4, 3)}
    maps["layer"][..., 2] = 1.0
    maps["layer"][0, :, 1, 1] = 1.0  # the upper right cell
    words, masks = torch.tensor([[False, True, False]]), torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    assert muted_norms(maps, words, masks).item() == 0
    maps["layer"][0, :, 0, 1] = 0.5
    assert muted_norms(maps, words, masks).item() == pytest.approx((2 * 0.25) ** 0.5)
    masks[:, 0, 4] = True
    assert muted_norms(maps, words, masks).item() == pytest.approx((2 * 0.25 + 2) ** 0.5)
    assert muted_norms(maps, words, None).item() == pytest.approx((2 * 0.25 + 2) ** 0.5)


def test_an_object_too_small_for_a_layer_has_no_gradient_there():
    maps = {"layer": torch.ones(1, 2, 4, 3, requires_grad=True)}
    words, masks = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, 1, 1] = True  # on a grid of two by two nobody's nearest pixel
    muted_norms(maps, words, masks).sum().backward()
    assert maps["layer"].grad.count_nonzero() == 0


@pytest.mark.usefixtures("double_precision")
def test_the_released_loss_is_of_norms_a_mean_over_pictures(pipe, brief, monkeypatch):
    losses, materials = {}, {"pictures": noise_pictures(FORGET), "masks": left_half(2)}
    norms = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    monkeypatch.setattr(mace, "muted_norms", lambda *_: norms + 0)
    for variant in ("paper", "released"):
        method = small(MACE, variant=variant, learning_rate=1e-30)
        _, losses[variant] = method._mute(brief(materials))
    assert losses == {"released": (4 + 7) / 2, "paper": (10 + 29) / 2}


def test_with_the_end_token_all_of_the_padding_is_muted(pipe, brief, monkeypatch):
    seen, materials = [], {"pictures": noise_pictures(FORGET), "masks": left_half(2)}
    norms = mace.muted_norms
    monkeypatch.setattr(
        mace,
        "muted_norms",
        lambda maps, words, masks: seen.append(words) or norms(maps, words, masks),
    )
    small(MACE, iterations=1, batch_size=1, end_tokens=True)._mute(brief(materials))
    (words,) = seen
    at = words[0].nonzero().flatten().tolist()
    assert at in ([2, *range(3, 16)], [3, *range(4, 16)])


def test_without_a_segmenter_no_masks_are_made(warm, erasure):
    method = small(MACE, segmenter="none", iterations=1)
    asked = erasure(method)
    assert "masks" not in asked.materials
    warm.put(method.unlearn(asked).edits)
    assert warm.changed()


def test_thirty_augmented_prompts_that_differ(tiny_base):
    method = small(MACE, prompts="augmented")
    prompts = method.prompts(tiny_base, "a star")
    assert len(set(prompts)) == len(TEMPLATES) == 30
    assert all(prompt.count("a star") == 1 for prompt in prompts)
    assert small(MACE, prompts=["the {concept}"]).prompts(tiny_base, "star") == ("the star",)


def test_no_lambda_and_few_captions_are_doubted():
    asked = MACESettings(lam=0.0)
    (doubt,) = MACE.doubts([MACESettings(), asked])
    assert "general_captions" in doubt
    assert (
        MACE.doubts([MACESettings(), MACESettings(lam=0.0, general_captions="captions.txt")]) == []
    )


def test_it_runs_on_the_pictures_masks_and_sums_that_it_asks_for(warm, erasure):
    method = small(MACE)
    unlearned = method.unlearn(erasure(method))
    assert unlearned.numbers["condition"] > 1
    warm.put(unlearned.edits)
    expected = {f"unet.{path}.weight" for path in projections(warm.pipe.unet)}
    assert set(warm.changed()) == expected
