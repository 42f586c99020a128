import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.text import embed
from workers.unlearners.concept_ablation import ConceptAblation


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_two_iterations_are_the_published_equation(pipe, brief, prior):
    """MSE(ε_θ(x_t, c), sg[ε_θ(x_t, a)]) + w · MSE(ε_θ(x_t, a), ε), x_0 a picture of the anchor."""
    twin = copy.deepcopy(pipe)
    unlearned = small(
        ConceptAblation, prior_weight=prior, learning_rate=1e-3, weight_decay=1e-2
    ).unlearn(brief())

    unet, pictures = twin.unet, noise_pictures(ANCHOR)
    concept, anchor = embed(twin, FORGET), embed(twin, ANCHOR)
    trained = trainable(unet, lambda name: "attn2.to_k" in name or "attn2.to_v" in name)

    def loss(step):
        rows, x, _, t = noised(twin, pictures, 2, step, "anchor")
        ablated = mse(eps(unet, x, t, concept[rows]), fixed(unet, x, t, anchor[rows]))
        rows, x, noise, t = noised(twin, pictures, 2, step, "prior")
        return ablated + prior * mse(eps(unet, x, t, anchor[rows]), noise)

    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=1e-2)
    mean = minimise(optimizer, loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_it_asks_for_pictures_of_the_anchor_only(tiny_base):
    (need,) = small(ConceptAblation).needs(tiny_base, "star").values()
    assert need.asked == {"prompts": list(tiny_base.prompts(tiny_base.anchor("star")))}
    (need,) = small(ConceptAblation, anchor="heart").needs(tiny_base, "star").values()
    assert need.asked == {"prompts": list(tiny_base.prompts("heart"))}


def test_it_runs_on_the_pictures_that_it_asks_for(erasure):
    method = small(ConceptAblation, iterations=1)
    assert method.unlearn(erasure(method)).numbers["loss"] > 0
