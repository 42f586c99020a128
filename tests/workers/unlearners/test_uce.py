import functools

import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.text import embed
from workers.erasure.closed_form import text_projections
from workers.unlearners.uce import UCE

TOKENS = ("last", "from_last", "from_subject")


@pytest.fixture
def erasure(erasure):
    """Without anchors: the concept goes to the method's target."""
    return functools.partial(erasure, anchor_prompts=())


def unlearn(erasure, **settings):
    return UCE(UCE.Settings(**settings)).unlearn(erasure)


def token(pipe, prompt, index):
    return embed(pipe, [prompt])[0, index].double()


def projections(pipe):
    return [layer.weight.detach().double().clone() for layer in text_projections(pipe.unet)]


def test_only_cross_attentions_keys_and_values_change(warm, erasure):
    (edit,) = unlearn(erasure()).edits
    warm.put([edit])
    names = {n for n in warm.base_state() if ".attn2.to_k." in n or ".attn2.to_v." in n}
    assert set(warm.changed()) == edit.values.keys() == names


@pytest.mark.parametrize("tokens", TOKENS)
def test_mapping_a_concept_to_itself_is_the_identity(warm, erasure, tokens):
    unlearned = unlearn(erasure(prompts=("a star",)), target="a star", tokens=tokens)
    warm.put(unlearned.edits)
    assert warm.changed() == {}


def test_with_nothing_erased_the_weights_stay_bit_for_bit(warm, erasure):
    warm.put(unlearn(erasure(prompts=("",)), target="").edits)
    assert warm.changed() == {}


def test_the_concept_goes_to_its_target_as_lambda_vanishes(pipe, erasure):
    before = projections(pipe)
    star, shape = token(pipe, "a star", 2), token(pipe, "a shape", 2)
    unlearn(erasure(prompts=("a star",), retained_prompts=()), target="a shape", lam=1e-6)
    for old, new in zip(before, projections(pipe), strict=True):
        torch.testing.assert_close(new @ star, old @ shape, atol=1e-4, rtol=1e-4)


def test_retained_prompts_stay_as_lambda_vanishes(pipe, erasure):
    before = projections(pipe)
    circle = token(pipe, "a circle", 2)
    unlearn(erasure(prompts=("a star",), retained_prompts=("a circle",)), lam=1e-6)
    for old, new in zip(before, projections(pipe), strict=True):
        torch.testing.assert_close(new @ circle, old @ circle, atol=1e-4, rtol=1e-4)


def test_the_published_formula(pipe, erasure):
    """W = (λ W0 + s_e v* cᵀ + s_p W0 c_p c_pᵀ)(λ I + s_e c cᵀ + s_p c_p c_pᵀ)⁻¹, written out."""
    lam, erase, keep = 0.5, 0.8, 0.3
    before = projections(pipe)
    c, goal, kept = token(pipe, "a star", 2), token(pipe, "", 0), token(pipe, "a circle", 2)
    unlearn(
        erasure(prompts=("a star",), retained_prompts=("a circle",)),
        lam=lam, erase_scale=erase, preserve_scale=keep, tokens="last",
    )  # fmt: skip
    system = lam * torch.eye(64).double()
    system += erase * torch.outer(c, c) + keep * torch.outer(kept, kept)
    for old, new in zip(before, projections(pipe), strict=True):
        values = lam * old
        values += erase * torch.outer(old @ goal, c) + keep * torch.outer(old @ kept, kept)
        torch.testing.assert_close(new, values @ torch.linalg.inv(system), atol=1e-6, rtol=1e-4)


def test_the_condition_number_is_reported(erasure):
    assert unlearn(erasure()).numbers["condition"] > 1


def test_a_hopeless_system_is_refused(erasure):
    with pytest.raises(ResurgeError, match="raise uce's lam"):
        unlearn(erasure(), lam=1e-14)


def test_it_has_no_randomness(warm, erasure):
    first = unlearn(erasure(seed=0)).edits[0].values
    warm.reset()
    second = unlearn(erasure(seed=1)).edits[0].values
    assert UCE.seeded is False
    assert all(torch.equal(first[name], value) for name, value in second.items())
