import functools

import pytest
import torch

from tests.workers.unlearners.transcribe import FORGET, RETAIN
from workers.diffusion.text import embed
from workers.erasure.closed_form import text_projections
from workers.unlearners.rece import RECE, derived_embeddings


@pytest.fixture
def erasure(erasure):
    """Without anchors: the concept goes to the method's target."""
    return functools.partial(erasure, anchor_prompts=())


def unlearn(erasure, **settings):
    return RECE(RECE.Settings(**settings)).unlearn(erasure)


def projections(pipe):
    return [layer.weight.detach().clone() for layer in text_projections(pipe.unet)]


def assert_all_close(pipe, expected, **tolerances):
    for found, weight in zip(projections(pipe), expected, strict=True):
        torch.testing.assert_close(found, weight, **tolerances)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_the_published_formulas(pipe, brief, epochs):
    """UCE from each prompt's last token on; then all of c' = (Σ WᵀW + λI)⁻¹ (Σ WᵀW⁰) c is erased
    from the current W, again and again.
    """
    lam, first_lam, uce_lam, erase, first_keep, keep = 0.2, 0.5, 0.3, 0.8, 1.2, 0.4
    original, eye = projections(pipe), torch.eye(64)
    star, red_star = embed(pipe, FORGET)
    empty = embed(pipe, [""])[0]
    kept = embed(pipe, ["", *RETAIN]).flatten(0, 1)
    unlearn(
        brief(anchor_prompts=()),
        epochs=epochs, lam=lam, first_lam=first_lam, uce_lam=uce_lam, erase_scale=erase,
        first_preserve_scale=first_keep, preserve_scale=keep,
    )  # fmt: skip

    def uce(weights, sources, goal, lam, keep):
        inverse = torch.linalg.inv(lam * eye + erase * sources.T @ sources + keep * kept.T @ kept)
        return [
            (lam * w + erase * w @ goal.T @ sources + keep * w @ kept.T @ kept) @ inverse
            for w in weights
        ]

    first = torch.cat([star[2:], red_star[3:]])
    weights = uce(original, first, torch.cat([empty[:14], empty[:13]]), first_lam, first_keep)
    c = torch.cat([star, red_star])
    for _ in range(epochs):
        gram, cross = lam * eye, torch.zeros(64, 64)
        for now, before in zip(weights, original, strict=True):
            gram, cross = gram + now.T @ now, cross + now.T @ before
        derived = (torch.linalg.inv(gram) @ cross @ c.T).T
        weights = uce(weights, derived, torch.cat([empty, empty]), uce_lam, keep)
    assert_all_close(pipe, weights, atol=1e-8, rtol=1e-6)


def test_the_derived_embedding_is_the_concept_itself_where_nothing_was_edited(pipe):
    concept = embed(pipe, FORGET).flatten(0, 1)
    derived = derived_embeddings(pipe, projections(pipe), concept, 1e-9)
    torch.testing.assert_close(derived, concept.double(), atol=1e-4, rtol=1e-4)


def test_a_large_lambda_keeps_the_derived_embedding_near_nothing(pipe):
    concept = embed(pipe, FORGET).flatten(0, 1)
    derived = derived_embeddings(pipe, projections(pipe), concept, 1e9)
    assert derived.norm() < 1e-6 * concept.norm()


def test_keeping_the_best_epoch_returns_one_of_the_epochs(warm, brief):
    epochs = []
    for count in (1, 2, 3):
        warm.reset()
        epochs.append(unlearn(brief(), epochs=count).edits[0].values)
    warm.reset()
    best = unlearn(brief(), epochs=3, keep_best=True).edits[0].values
    assert any(all(torch.equal(best[n], epoch[n]) for n in best) for epoch in epochs)


def test_the_reach_of_derived_embeddings_falls(brief):
    once, thrice = (unlearn(brief(), epochs=epochs).numbers["reach"] for epochs in (1, 3))
    assert 0 < thrice < once
