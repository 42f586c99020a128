import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    RETAIN,
    SAMPLER_STEPS,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    partly_denoised,
    trainable,
)
from workers.diffusion.rng import integers
from workers.diffusion.soft_prompt import encode, new_word, token_ids
from workers.diffusion.text import embed
from workers.unlearners.advunlearn import AdvUnlearn


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("kind", "turns"), [("fast", 1), ("pgd", 2)])
def test_two_iterations_are_the_published_equation(pipe, brief, kind, turns):
    """ESD's loss in the text encoder, from the second iteration at an adversarial prompt,
    + w · MSE to the original on retained prompts, each at an x_t that the original drew for it.
    """
    twin, eta, weight, size = copy.deepcopy(pipe), 1.2, 0.4, 0.02
    unlearned = small(
        AdvUnlearn, attack=kind, attack_steps=turns, attack_rate=size, learning_rate=1e-3,
        negative_guidance=eta, retain_weight=weight, warmup_iterations=1,
        sampler_steps=SAMPLER_STEPS,
    ).unlearn(brief())  # fmt: skip

    original, (empty,), kept = embed(twin, FORGET), embed(twin, [""]), embed(twin, RETAIN)
    plain, roomy = token_ids(twin, FORGET, 0), token_ids(twin, FORGET, 1)
    asked_to_stay = token_ids(twin, RETAIN, 0)
    trained = trainable(twin.text_encoder, lambda name: "embeddings." not in name)

    def adversary(x, t, ids, concept, step):
        soft = new_word(twin, 2, 1, 0, step, "prefix")
        for _ in range(turns):
            soft.requires_grad_(True)
            harm = mse(eps(twin.unet, x, t, encode(twin, ids, soft)), concept)
            soft = (soft - size * torch.autograd.grad(harm, soft)[0].sign()).detach()
        return soft

    def loss(step):
        rows = integers(2, 2, 0, step, "prompts")
        x, t = partly_denoised(twin, twin.unet, original[rows], empty, 3.0, step)
        concept = fixed(twin.unet, x, t, original[rows])
        away = fixed(twin.unet, x, t, empty.expand_as(original[rows]))
        c = encode(twin, plain[rows])
        if step >= 1:
            c = encode(twin, roomy[rows], adversary(x, t, roomy[rows], concept, step))
        erased = mse(eps(twin.unet, x, t, c), away - eta * (concept - away))
        more = integers(3, 2, 0, step, "retained")
        x, t = partly_denoised(twin, twin.unet, kept[more], empty, 3.0, step, " retained")
        stay = fixed(twin.unet, x, t, kept[more])
        still = eps(twin.unet, x, t, encode(twin, asked_to_stay[more]))
        return erased + weight * mse(still, stay)

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-3), loss)
    assert_same(unlearned, twin, [f"text_encoder.{name}" for name in trained], mean)


def test_nothing_is_retained_at_weight_zero(tiny_base, brief):
    unlearned = small(AdvUnlearn, retain_weight=0).unlearn(brief(retained_prompts=()))
    assert unlearned.numbers["loss"] > 0


def test_a_base_that_retains_nothing_is_a_problem_only_with_a_retained_term(tiny_base):
    lonely = copy.copy(tiny_base)
    lonely.retained = lambda concept: ()
    (problem,) = small(AdvUnlearn).problems(lonely, "star")
    assert "retain_weight: 0" in problem
    assert small(AdvUnlearn, retain_weight=0).problems(lonely, "star") == []
