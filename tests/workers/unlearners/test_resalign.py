import re

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    RETAIN,
    minimise,
    mse,
    noise_pictures,
    noised,
)
from workers.diffusion.rng import integers
from workers.diffusion.text import embed
from workers.unlearners.resalign import LoraSpace, ResAlign, Simulation, hypergradient, simulate


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """L(θ) + λ (L(θ*) - L(θ)) + β R(θ), ∂L(θ*)/∂θ = h of h ← ∇L(θ*) - ∇²L_ft(θ*) h."""
    lam, beta, last_beta, rate = 0.7, 1.2, 1.9, 1e-2
    method = small(
        ResAlign, resilience_weight=lam, retain_weight=beta, final_retain_weight=last_beta,
        learning_rate=rate, simulations=2, min_simulated_steps=1, max_simulated_steps=2,
        fixed_point_steps=2, simulated_rates=(0.05,),
    )  # fmt: skip
    space = LoraSpace(brief(), 1)
    unlearned = method.unlearn(brief())

    unet, factors = pipe.unet, space.parameters
    layer = re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
    base = {p: m.weight for p, m in unet.named_modules() if layer.fullmatch(p)}
    ways = [(a, o, 0.05) for a in ("full", "lora") for o in ("sgd", "adam")]
    texts = {prompts: embed(pipe, prompts) for prompts in (FORGET, ANCHOR, RETAIN)}

    def at(weights, x, t, text):
        moved = {f"{path}.weight": w for path, w in zip(base, weights, strict=True)}
        return functional_call(unet, moved, (x, t), {"encoder_hidden_states": text}).sample

    def gone(weights, step, turn):
        rows, x, _, t = noised(pipe, noise_pictures(FORGET), 2, step, f"forget {turn}")
        target = at(base.values(), x, t, texts[ANCHOR][rows]).detach()
        return mse(at(weights, x, t, texts[FORGET][rows]), target)

    def ordinary(weights, prompts, step, stream):
        rows, x, noise, t = noised(pipe, noise_pictures(prompts), 2, step, stream)
        return mse(at(weights, x, t, texts[prompts][rows]), noise)

    def tuned(weights, step, turn):
        both = (ordinary(weights, p, step, f"simulated {turn}") for p in (FORGET, RETAIN))
        return sum(both) / 2

    def beyond(theta, step, turn):
        way = ways[integers(4, 1, 0, step, f"simulation {turn}").item()]
        steps = 1 + integers(2, 1, 0, step, f"simulated steps {turn}").item()
        start = [value.detach() for value in theta]
        there = simulate(lambda w, k: tuned(w, step, f"{turn}.{k}"), start, Simulation(*way, steps))
        g = torch.autograd.grad(gone(there, step, turn + 1), there)
        h = g
        for _ in range(2):
            inner = lambda *w: tuned(w, step, f"{turn}.end")  # noqa: E731
            _, bent = torch.autograd.functional.hvp(inner, tuple(there), tuple(h))
            h = [a - b for a, b in zip(g, bent, strict=True)]
        return sum((slope * value).sum() for slope, value in zip(h, theta, strict=True))

    plain = []

    def loss(step):
        theta = [w + factors[f"{p}.up"] @ factors[f"{p}.down"] for p, w in base.items()]
        weight = (beta, last_beta)[step]
        value = (1 - lam) * gone(theta, step, 0) + weight * ordinary(theta, RETAIN, step, "retain")
        plain.append(value.item())
        return value + lam / 2 * sum(beyond(theta, step, turn) for turn in range(2))

    with sdpa_kernel(SDPBackend.MATH):
        minimise(torch.optim.AdamW(factors.values(), lr=rate, weight_decay=1e-2), loss)
    (edit,) = unlearned.edits
    assert edit.factors.keys() == base.keys()
    for path, (down, up) in edit.factors.items():
        torch.testing.assert_close(down, factors[f"{path}.down"].detach())
        torch.testing.assert_close(up, factors[f"{path}.up"].detach())
    assert unlearned.numbers["loss"] == pytest.approx(sum(plain) / 2)


def quadratic(norm):
    """Two tensors at once: ½ xᵀ H x with ‖H‖ = `norm`, and its H."""
    half = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    h = half @ half.T
    h *= norm / torch.linalg.matrix_norm(h, 2)

    def inner(parts):
        x = torch.cat([part.flatten() for part in parts])
        return 0.5 * x @ h @ x

    return inner, h


@pytest.mark.usefixtures("double_precision")
def test_the_hypergradient_of_a_quadratic_is_exact_in_the_limit():
    inner, h = quadratic(0.8)
    reached = [torch.randn(2, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
    slope = torch.arange(6.0)

    def outer(parts):
        return slope @ torch.cat([part.flatten() for part in parts])

    found = hypergradient(outer, inner, reached, 300)
    exact = torch.linalg.solve(torch.eye(6) + h, slope)
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), exact)


def test_without_fixed_point_steps_the_hypergradient_is_the_gradient():
    reached = [torch.tensor([1.0, 2.0], requires_grad=True)]
    (found,) = hypergradient(lambda parts: (parts[0] ** 2).sum(), None, reached, 0)
    assert found.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(("name", "rule"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_a_full_simulation_is_plain_training(name, rule):
    theta = [torch.randn(3), torch.randn(2, 2)]

    def loss(weights, step):
        return sum(((w - step) ** 2).sum() for w in weights)

    reached = simulate(loss, theta, Simulation("full", name, 0.05, 4))
    plain = [torch.nn.Parameter(value.clone()) for value in theta]
    minimise(rule(plain, lr=0.05), lambda step: loss(plain, step), 4)
    for found, value in zip(reached, plain, strict=True):
        assert found.requires_grad
        torch.testing.assert_close(found, value)


def test_a_lora_simulation_moves_each_matrix_by_rank_four():
    theta = [torch.zeros(8, 9)]
    goal = torch.randn(8, 9)
    (reached,) = simulate(
        lambda weights, step: ((weights[0] - goal) ** 2).sum(),
        theta,
        Simulation("lora", "sgd", 0.05, 3),
    )
    assert torch.linalg.matrix_rank(reached.detach()) == 4
    assert ((reached - goal) ** 2).sum() < (goal**2).sum()


def test_the_result_is_a_lora_and_the_weights_stay(warm, brief):
    (edit,) = small(ResAlign).unlearn(brief()).edits
    assert warm.changed() == {}
    warm.put([edit])
    assert {n.removeprefix("unet.").removesuffix(".weight") for n in warm.changed()} == set(
        edit.factors
    )
