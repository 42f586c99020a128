import math
import re

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    RETAIN,
    minimise,
    mse,
    noise_pictures,
    noised,
)
from workers.diffusion.rng import integers, normal
from workers.diffusion.text import embed
from workers.unlearners.resalign import LoraSpace, ResAlign, Simulation, hypergradient, simulate


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """-D(θ) + λ (D(θ) - D(θ*)) + w R(θ), dD(θ*)/dθ = v of v ← ∇D(θ*) - ∇²L_ft(θ*) v."""
    lam, beta, last_beta, rate, scale = 0.7, 1.2, 1.9, 1e-2, 0.3
    method = small(
        ResAlign, resilience_weight=lam, retain_weight=beta, final_retain_weight=last_beta,
        learning_rate=rate, simulations=2, min_simulated_steps=1, max_simulated_steps=2,
        fixed_point_steps=3, simulated_rates=(0.05,), hypergradient_limit=1e9,
        hypergradient_scale=scale,
    )  # fmt: skip
    factors = LoraSpace(brief(), method.settings).parameters
    unlearned = method.unlearn(brief())

    unet = pipe.unet
    layer = re.compile(r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)")
    base = {p: m.weight for p, m in unet.named_modules() if layer.fullmatch(p)}
    texts = {prompts: embed(pipe, prompts) for prompts in (FORGET, RETAIN)}
    alphas = pipe.scheduler.alphas_cumprod.double()

    def at(theta, x, t, text):
        pairs = zip(base.items(), theta[::2], theta[1::2], strict=True)
        moved = {f"{path}.weight": w + up @ down for (path, w), down, up in pairs}
        return functional_call(unet, moved, (x, t), {"encoder_hidden_states": text}).sample

    def ordinary(theta, prompts, step, stream):
        rows, x, noise, t = noised(pipe, noise_pictures(prompts), 2, step, stream)
        return mse(at(theta, x, t, texts[prompts][rows]), noise)

    def after(theta, step, turn):
        """The pictures and t of `ordinary(theta, FORGET, step, "forget")`, another noise."""
        rows, _, _, t = noised(pipe, noise_pictures(FORGET), 2, step, "forget")
        clean, kept = noise_pictures(FORGET).latents[rows], alphas[t].view(-1, 1, 1, 1)
        noise = normal(clean.shape, 0, step, f"noise forget after {turn}")
        x = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        return mse(at(theta, x, t, texts[FORGET][rows]), noise)

    def still(theta, step):
        rows, x, _, t = noised(pipe, noise_pictures(RETAIN), 2, step, "retain")
        goal = unet(x, t, encoder_hidden_states=texts[RETAIN][rows]).sample.detach()
        return mse(at(theta, x, t, texts[RETAIN][rows]), goal)

    def tuned(theta, step, turn):
        both = (ordinary(theta, p, step, f"simulated {turn}") for p in (FORGET, RETAIN))
        return sum(both) / 2

    def finetuned(theta, step, turn):
        rule = (torch.optim.SGD, torch.optim.Adam)[integers(2, 1, 0, step, f"simulation {turn}")]
        steps = 1 + integers(2, 1, 0, step, f"simulated steps {turn}").item()
        there = [torch.nn.Parameter(value.detach().clone()) for value in theta]
        minimise(rule(there, lr=0.05), lambda t: tuned(there, step, f"{turn}.{t}"), steps)
        return there

    def beyond(theta, step, turn):
        there = finetuned(theta, step, turn)
        value = after(there, step, turn)
        g = torch.autograd.grad(value, there)
        h = g
        for _ in range(2):
            inner = lambda *p: tuned(p, step, f"{turn}.end")  # noqa: E731
            _, bent = torch.autograd.functional.hvp(inner, tuple(there), tuple(h))
            h = [a - b for a, b in zip(g, bent, strict=True)]
        through = sum((slope.detach() * p).sum() for slope, p in zip(h, theta, strict=True))
        return through, value.detach()

    means = []

    def loss(step):
        theta = list(factors.values())
        # The second of two iterations is the last: w is near the end of its sigmoid.
        weight = (beta, beta + (last_beta - beta) / (1 + math.exp(-5)))[step]
        value = (lam - 1) * ordinary(theta, FORGET, step, "forget") + weight * still(theta, step)
        turns = [beyond(theta, step, turn) for turn in range(2)]
        means.append(value.item() - lam * sum(reached for _, reached in turns).item() / 2)
        return scale * (value - lam / 2 * sum(through for through, _ in turns))

    with sdpa_kernel(SDPBackend.MATH):
        minimise(torch.optim.AdamW(factors.values(), lr=rate, weight_decay=1e-2), loss)
    (edit,) = unlearned.edits
    assert edit.factors.keys() == base.keys()
    for path, (down, up) in edit.factors.items():
        torch.testing.assert_close(down, factors[f"{path}.down"].detach())
        torch.testing.assert_close(up, factors[f"{path}.up"].detach())
    assert unlearned.numbers["loss"] == pytest.approx(sum(means) / 2)


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
    slope, direct = torch.arange(6.0), torch.ones(6)
    found = hypergradient(parts(slope), parts(direct), inner, reached, 300, math.inf)
    exact = torch.linalg.solve(torch.eye(6) + h, slope) + direct
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), exact)


def parts(values):
    return [values[:2], values[2:].view(2, 2)]


def test_with_one_term_the_hypergradient_is_the_gradient_and_the_inner_loss_is_not_asked():
    reached = [torch.tensor([1.0, 2.0], requires_grad=True)]
    (found,) = hypergradient([torch.ones(2)], [2 * torch.ones(2)], None, reached, 1, math.inf)
    assert found.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("curvature", "limit"), [(30.0, math.inf), (100.0, math.inf), (0.5, 1.0)])
def test_a_series_that_grows_or_ends_too_long_is_tried_with_smaller_steps_and_given_up(
    curvature, limit
):
    """At ρ = ½ⁿ a turn multiplies v by (1 - ρ) - ρ H, which shrinks it if ρ (1 + H) < 2."""
    reached = [torch.tensor([0.3], requires_grad=True)]
    inner = lambda p: 0.5 * curvature * (p[0] ** 2).sum()  # noqa: E731
    (found,) = hypergradient([torch.ones(1)], [torch.ones(1)], inner, reached, 400, limit)
    size = 1 / 32
    if curvature == 100:
        assert size * (1 + curvature) > 2
        assert found.item() == 1
    elif limit == 1:
        assert found.item() == 1
    else:
        assert found.item() == pytest.approx(1 + 1 / (1 + curvature))


@pytest.mark.parametrize(("name", "rule"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_a_simulation_is_plain_training_on_its_own_batches(name, rule):
    theta = [torch.randn(3), torch.randn(2, 2)]

    class Losses:
        def inner(self, step, stream):
            return lambda weights: sum(((w - len(stream) - step) ** 2).sum() for w in weights)

    reached = simulate(Losses(), theta, Simulation(name, 0.05, 4), 2, 7)
    plain = [torch.nn.Parameter(value.clone()) for value in theta]
    minimise(rule(plain, lr=0.05), lambda t: Losses().inner(2, f"7.{t}")(plain), 4)
    for found, value in zip(reached, plain, strict=True):
        assert found.requires_grad
        torch.testing.assert_close(found, value)


def test_the_result_is_a_lora_and_the_weights_stay(warm, brief):
    (edit,) = small(ResAlign).unlearn(brief()).edits
    assert warm.changed() == {}
    warm.put([edit])
    assert {n.removeprefix("unet.").removesuffix(".weight") for n in warm.changed()} == set(
        edit.factors
    )
