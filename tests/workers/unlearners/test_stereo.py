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
    pick,
    trainable,
)
from workers.diffusion.soft_prompt import encode, new_soft, token_ids
from workers.diffusion.text import embed
from workers.unlearners.stereo import STEREO

RATES = {"search_rate": 2e-3, "inversion_rate": 0.1, "learning_rate": 1e-3}


@pytest.mark.usefixtures("double_precision")
def test_a_round_and_two_final_iterations_are_the_published_equations(pipe, brief):
    """ESD, textual inversion, then from the original MSE(ε_θ(cᵢ), ε*(∅) + w (ε*(a) - ε*(∅))
    - η (ε*(cᵢ) - ε*(∅))) over the prompts and the found token.
    """
    twin, eta, weight = copy.deepcopy(pipe), 0.9, 0.6
    unlearned = small(
        STEREO, negative_guidance=eta, anchor_guidance=weight, batch_size=4,
        search_iterations=2, sampler_steps=SAMPLER_STEPS, **RATES,
    ).unlearn(brief())  # fmt: skip

    # Of the final draws, four a step, some are the found token.
    original, (empty,) = copy.deepcopy(twin.unet), embed(twin, [""])
    known, anchors = embed(twin, FORGET), embed(twin, ANCHOR)

    def erase(unet, towards, rate, name):
        def loss(step):
            c = pick(known, 4, step, f"{name} prompts")
            a = pick(anchors, 4, step, f"{name} anchors")
            x, t = partly_denoised(twin, unet, c, empty, 3.0, step)
            nothing = fixed(original, x, t, empty.expand_as(c))
            target = nothing - eta * (fixed(original, x, t, c) - nothing)
            target += towards * (fixed(original, x, t, a) - nothing)
            return mse(eps(unet, x, t, c), target)

        trained = trainable(unet, lambda name: "attn2." in name)
        optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=1e-2)
        return trained, minimise(optimizer, loss)

    def inverted(unet):
        token = nn.Parameter(new_soft(twin, 1, 1, 0, 0, "inverted token"))
        ids = token_ids(twin, [""], 1)

        def loss(step):
            _, x, noise, t = noised(twin, noise_pictures(FORGET), 4, step, "invert 0")
            return mse(eps(unet, x, t, encode(twin, ids, token).expand(4, -1, -1)), noise)

        minimise(torch.optim.Adam([token], lr=0.1), loss)
        return encode(twin, ids, token).detach()

    searched = copy.deepcopy(original)
    erase(searched, 0.0, RATES["search_rate"], "erase 0")
    known = torch.cat([known, inverted(searched)])
    trained, mean = erase(twin.unet, weight, RATES["learning_rate"], "final")
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


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
