import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.erasure.closed_form import (
    Sums,
    apply_map,
    checked_condition,
    solve_right,
    text_projections,
)


def test_with_nothing_moved_the_map_is_exactly_the_identity():
    sums = Sums.empty(6)
    sums.keep(torch.randn(20, 6), 0.7)
    matrix, _ = sums.solve(0.5, "")
    assert torch.equal(matrix, torch.eye(6, dtype=torch.float64))


def test_the_map_is_the_least_squares_answer():
    """M minimises λ ‖M - I‖² + Σ s ‖M c - c*‖² + Σ s ‖M e - e‖²: its gradient there is zero."""
    c, goal, kept = (torch.randn(5, 6, dtype=torch.float64) for _ in range(3))
    sums = Sums.empty(6)
    sums.move(c, goal, 0.8)
    sums.keep(kept, 0.3)
    matrix, _ = sums.solve(0.5, "")
    matrix.requires_grad_(True)
    loss = 0.5 * (matrix - torch.eye(6)).square().sum()
    loss += 0.8 * (c @ matrix.T - goal).square().sum()
    loss += 0.3 * (kept @ matrix.T - kept).square().sum()
    (gradient,) = torch.autograd.grad(loss, matrix)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


def test_one_source_goes_to_its_target_as_lambda_vanishes():
    c, goal = torch.randn(1, 6), torch.randn(1, 6)
    sums = Sums.empty(6)
    sums.move(c, goal, 1.0)
    matrix, _ = sums.solve(1e-9, "")
    torch.testing.assert_close(c.double() @ matrix.T, goal.double(), atol=1e-6, rtol=1e-6)


def test_a_known_gram_matrix_keeps_as_its_embeddings_would():
    kept, moved = torch.randn(9, 6), torch.randn(2, 2, 6)
    one, other = Sums.empty(6), Sums.empty(6)
    for sums in (one, other):
        sums.move(*moved, 1.0)
    one.keep(kept, 0.4)
    other.keep_gram(kept.double().T @ kept.double(), 0.4)
    torch.testing.assert_close(one.solve(0.1, "")[0], other.solve(0.1, "")[0])


def test_solving_from_the_right_is_the_inverses_product():
    half = torch.randn(5, 5, dtype=torch.float64)
    system, values = half @ half.T + torch.eye(5), torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(solve_right(values, system), values @ torch.linalg.inv(system))


def test_the_condition_is_the_ratio_of_the_extreme_eigenvalues():
    system = torch.diag(torch.tensor([2.0, 8.0, 4.0], dtype=torch.float64))
    assert checked_condition(system, "") == pytest.approx(4)


def test_a_singular_system_is_refused_with_the_methods_advice():
    sums = Sums.empty(4)
    sums.keep(torch.ones(1, 4), 1.0)
    with pytest.raises(ResurgeError, match=r"condition number is .*; raise lam a little"):
        sums.solve(0.0, "raise lam a little")


def test_systems_that_have_no_solution_or_are_no_numbers_are_refused():
    with pytest.raises(ResurgeError, match="its system is singular; raise the method's lam"):
        solve_right(torch.ones(2, 4).double(), torch.zeros(4, 4).double())
    for number in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="the closed form: the system is not finite"):
            checked_condition(torch.full((4, 4), number).double(), "raise lam")


def test_the_map_goes_to_the_right_of_every_weight(pipe):
    layers = text_projections(pipe.unet)
    before = [layer.weight.clone() for layer in layers]
    matrix = torch.randn(64, 64, dtype=torch.float64)
    apply_map(layers, matrix)
    for layer, weight in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.weight, (weight.double() @ matrix).float())


def test_only_cross_attentions_keys_and_values_read_the_text(pipe):
    names = {id(m): n for n, m in pipe.unet.named_modules()}
    found = {names[id(layer)] for layer in text_projections(pipe.unet)}
    assert found == {n for n in names.values() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(found) == 8
