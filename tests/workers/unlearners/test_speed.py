import functools

import pytest
import torch

from workers.diffusion.text import embed
from workers.erasure.closed_form import Sums, text_projections
from workers.unlearners.speed import SPEED, constrained, influenced, null_space, without

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture
def erasure(erasure):
    """Without anchors: the concept goes to the method's target."""
    return functools.partial(erasure, anchor_prompts=())


def rows(count, seed):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def unlearn(erasure, **settings):
    return SPEED(SPEED.Settings(**settings)).unlearn(erasure)


def test_the_solution_is_the_minimum_of_the_published_objective():
    """‖(W + ΔP) C₁ - W C*‖² + ‖ΔP‖² under ΔP C₂ = 0: no step within the constraints lowers it."""
    weight, source, target, kept, fixed = (rows(n, s) for s, n in enumerate((6, 3, 3, 2, 2)))
    sums = Sums.empty(8)
    sums.move(source, target, 1.0)
    projector = without(null_space(kept, 1e-9), fixed)
    found = (weight @ constrained(sums, projector) - weight).requires_grad_(True)
    loss = ((weight + found) @ source.T - weight @ target.T).square().sum() + found.square().sum()
    (slope,) = torch.autograd.grad(loss, found)
    assert slope.norm() > 0.1  # outside the constraints there are better ones
    torch.testing.assert_close(slope @ projector, torch.zeros_like(slope))
    for what in (kept, fixed):
        torch.testing.assert_close(found @ what.T, torch.zeros(6, 2))
    torch.testing.assert_close(found @ projector, found.detach())


def test_the_projector_takes_what_the_invariants_leave_of_the_null_space():
    kept, fixed = rows(2, 0), rows(3, 1)
    projector = without(null_space(kept, 1e-9), fixed)
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector, projector.T)
    assert projector.trace().item() == pytest.approx(8 - 2 - 3)
    assert without(null_space(kept, 1e-9), kept).trace().item() == pytest.approx(8 - 2)
    torch.testing.assert_close(null_space(rows(0, 0), 1e-9), torch.eye(8))


def test_only_embeddings_that_move_by_more_than_the_average_count():
    change = torch.eye(8)[:2]
    embeddings = torch.diag(torch.tensor([3.0, 1.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert influenced(change, embeddings).tolist() == [embeddings[0].tolist()]


def test_mapping_a_concept_to_itself_changes_nothing(warm, erasure):
    warm.put(unlearn(erasure(prompts=("a star",)), target="a star").edits)
    assert warm.changed() == {}


@pytest.mark.parametrize("tokens", ["last", "from_subject"])
def test_what_is_retained_and_the_empty_prompt_stay(pipe, erasure, tokens):
    before = [layer.weight.detach().double().clone() for layer in text_projections(pipe.unet)]
    what = erasure(prompts=("a star",), retained_prompts=("a circle",))
    free = unlearn(what, tokens=tokens, null_share=1e-9, augmentations=0, target="a shape")
    assert free.numbers["free_directions"] > 0
    empty = embed(pipe, [""])[0].double()
    star = embed(pipe, ["a star"])[0, 2].double()
    for old, layer in zip(before, text_projections(pipe.unet), strict=True):
        new = layer.weight.detach().double()
        assert ((new - old) @ empty.T).norm() < 1e-4 * (old @ empty.T).norm()
        assert ((new - old) @ star).norm() > 1e-2 * (old @ star).norm()
