import copy

import pytest
import torch
from torch import nn

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    SAMPLER_STEPS,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    noise_pictures,
    noised,
    partly_denoised,
    trainable,
)
from workers.diffusion.rng import shuffled
from workers.diffusion.soft_prompt import encode, new_soft, token_ids
from workers.diffusion.text import embed
from workers.unlearners.stereo import STEREO

RATES = {"search_rate": 2e-3, "inversion_rate": 0.1, "learning_rate": 1e-3}


@pytest.mark.usefixtures("double_precision")
def test_two_rounds_and_two_final_iterations_are_the_published_equations(pipe, brief):
    """Each round erases the newest from the model as it finds it; then from the original
    MSE(ε_θ(cᵢ), ε*(∅) + w (ε*(a) - ε*(∅)) - η mean_j (ε*(cⱼ) - ε*(∅))), j over all that is known.
    """
    twin, zeta, eta, weight = copy.deepcopy(pipe), 0.4, 2.9, 0.6
    unlearned = small(
        STEREO, rounds=2, search_guidance=zeta, negative_guidance=eta, anchor_guidance=weight,
        batch_size=4, search_iterations=2, sampler_steps=SAMPLER_STEPS, **RATES,
    ).unlearn(brief())  # fmt: skip

    original, (empty,) = copy.deepcopy(twin.unet), embed(twin, [""])
    known, anchors = [embed(twin, FORGET)], embed(twin, ANCHOR)

    def erase(unet, texts, target, rate, name):
        def loss(step):
            c = texts[shuffled(len(texts), 4, 0, step, f"{name} prompts")]
            x, t = partly_denoised(twin, unet, c, empty, 3.0, step, stream=f" {name}")
            return mse(eps(unet, x, t, c), target(x, t, c, step))

        trained = trainable(unet, lambda name: "attn2." in name)
        optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=1e-2)
        return trained, minimise(optimizer, loss)

    def away(teacher):
        def target(x, t, c, step):
            nothing = fixed(teacher, x, t, empty.expand_as(c))
            return nothing - zeta * (fixed(teacher, x, t, c) - nothing)

        return target

    def towards(x, t, c, step):
        nothing = fixed(original, x, t, empty.expand_as(c))
        a = anchors[shuffled(len(anchors), 4, 0, step, "final anchors")]
        target = nothing + weight * (fixed(original, x, t, a) - nothing)
        for one in everything:
            against = fixed(original, x, t, one.expand_as(c)) - nothing
            target -= eta / len(everything) * against
        return target

    def inverted(unet, turn):
        token = nn.Parameter(new_soft(twin, 1, 1, 0, turn, "inverted token"))
        ids = token_ids(twin, [""], 1)

        def loss(step):
            _, x, noise, t = noised(twin, noise_pictures(FORGET), 4, step, f"invert {turn}")
            return mse(eps(unet, x, t, encode(twin, ids, token).expand(4, -1, -1)), noise)

        minimise(torch.optim.AdamW([token], lr=0.1, weight_decay=1e-2), loss)
        return encode(twin, ids, token).detach()

    searched = copy.deepcopy(original)
    for turn in range(2):
        target = away(copy.deepcopy(searched))
        erase(searched, known[-1], target, RATES["search_rate"], f"erase {turn}")
        known.append(inverted(searched, turn))
    everything = torch.cat(known)
    trained, mean = erase(twin.unet, everything, towards, RATES["learning_rate"], "final")
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_the_released_drawing_needs_three_sampler_steps(tiny_base):
    (problem,) = STEREO(STEREO.Settings(variant="released", sampler_steps=2)).problems(
        tiny_base, "star"
    )
    assert "sampler_steps of 3 or more" in problem


def test_the_last_phase_starts_from_the_original_weights(warm, brief):
    """With a rate of next to nothing at the end, all of the search is forgotten."""
    rates = {"search_rate": 0.1, "learning_rate": 1e-30}
    unlearned = small(STEREO, search_iterations=3, **rates).unlearn(brief())
    warm.put(unlearned.edits)
    assert warm.changed() == {}


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_round_finds_a_token_and_progress_counts_all_steps(brief, rounds):
    calls = []
    unlearned = small(STEREO, rounds=rounds).unlearn(
        brief(progress=lambda *call: calls.append(call[:2]))
    )
    assert unlearned.numbers["found"] == rounds
    total = rounds * (1 + 2) + 2
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
