import copy

import pytest
import torch

from orchestrator.core.concepts import ConceptSet
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
from workers.unlearners.concept_ablation import ConceptAblation, squares_where


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_two_iterations_are_the_published_equation(pipe, brief, prior):
    """Σ_channels (ε_θ(x_t, c) - sg[ε_θ(x_t, a)])², a mean over cells, + w · MSE(ε_θ(x_t, a), ε).

    x_0 is a picture of the anchor.
    """
    twin = copy.deepcopy(pipe)
    unlearned = small(
        ConceptAblation, variant="paper", prior_weight=prior, learning_rate=1e-3,
        weight_decay=1e-2, clip_norm=1e6,
    ).unlearn(brief())  # fmt: skip

    unet, pictures = twin.unet, noise_pictures(ANCHOR)
    concept, anchor = embed(twin, FORGET), embed(twin, ANCHOR)
    trained = trainable(unet, lambda name: "attn2.to_k" in name or "attn2.to_v" in name)

    def loss(step):
        rows, x, _, t = noised(twin, pictures, 2, step, "anchor")
        squares = (eps(unet, x, t, concept[rows]) - fixed(unet, x, t, anchor[rows])).square()
        rows, x, noise, t = noised(twin, pictures, 2, step, "prior")
        return squares.sum(1).mean() + prior * mse(eps(unet, x, t, anchor[rows]), noise)

    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=1e-2)
    mean = minimise(optimizer, loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_cells_outside_the_mask_do_not_count():
    found, mask = torch.ones(1, 4, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    found[..., 0, 0], found[..., 1, :] = 3.0, 100.0
    assert squares_where(found, torch.zeros_like(found), mask).item() == 4 * (9 + 1) / 2
    assert squares_where(found, found + 2, None).item() == 4 * 4


def test_only_the_gradients_of_cross_attention_are_clipped(brief, monkeypatch):
    clipped = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda values, _: clipped.extend(values))
    erasure = brief()
    names = {id(p): n for n, p in erasure.pipe.unet.named_parameters()}
    made = small(ConceptAblation, group="attention", iterations=1).unlearn(erasure)
    trained = {n.removeprefix("unet.") for n in made.edits[0].values}
    assert {n.partition(".attn")[2][:1] for n in trained} == {"1", "2"}
    assert {names[id(p)] for p in clipped} == {n for n in trained if "attn2." in n}


def test_it_asks_for_pictures_of_the_anchor_only(tiny_base):
    (need,) = small(ConceptAblation).needs(tiny_base, ConceptSet.of("star")).values()
    assert need.asked == {"prompts": list(tiny_base.prompts(tiny_base.anchor("star")))}
    (need,) = (
        small(ConceptAblation, anchor="heart").needs(tiny_base, ConceptSet.of("star")).values()
    )
    assert need.asked == {"prompts": list(tiny_base.prompts("heart"))}


def test_it_runs_on_the_pictures_that_it_asks_for(erasure):
    method = small(ConceptAblation, iterations=1)
    assert method.unlearn(erasure(method)).numbers["loss"] > 0
