import copy

import pytest
import torch
from torch import nn

from tests.conformance.test_unlearners import Cut, Interrupted, same
from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    RETAIN,
    assert_same,
    eps,
    fixed,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.text import embed
from workers.unlearners.erasediff import EraseDiff, Place, automatic_weight, gradient_after


def is_trained(name):
    return "attn2." not in name and not name.startswith(
        ("conv_norm_out.", "conv_out.", "time_embedding.")
    )


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("weight", [0.6, None])
def test_two_iterations_are_the_published_equation(pipe, brief, weight):
    """∇L_r + λ (∇L_f(θ) - ∇L_f(θ_K)), θ_K two SGD steps on L_f away."""
    twin, rate = copy.deepcopy(pipe), 0.5
    unlearned = small(
        EraseDiff, variant="paper", weight=weight, eta=1.0, inner_steps=2, inner_rate=rate,
        group="noxattn", learning_rate=1e-4,
    ).unlearn(brief())  # fmt: skip

    concept, other, retained = (embed(twin, prompts) for prompts in (FORGET, ANCHOR, RETAIN))
    trained = trainable(twin.unet, is_trained)

    def slopes(loss, unet):
        values = [value for name, value in unet.named_parameters() if name in trained]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, values)])

    def forgotten(unet, step, turn):
        rows, x, _, t = noised(twin, noise_pictures(FORGET), 2, step, f"forget {turn}")
        return mse(eps(unet, x, t, concept[rows]), fixed(unet, x, t, other[rows]))

    losses, optimizer = [], torch.optim.Adam(trained.values(), lr=1e-4)
    sizes = [value.numel() for value in trained.values()]
    for step in range(2):
        rows, x, noise, t = noised(twin, noise_pictures(RETAIN), 2, step, "retain")
        kept = mse(eps(twin.unet, x, t, retained[rows]), noise)
        gone = forgotten(twin.unet, step, 0)
        g_r, g_q = slopes(kept, twin.unet), slopes(gone, twin.unet)
        ahead = copy.deepcopy(twin.unet)
        values = [value for name, value in ahead.named_parameters() if name in trained]
        for turn in (1, 2):
            steps = slopes(forgotten(ahead, step, turn), ahead).split(sizes)
            for value, part in zip(values, steps, strict=True):
                value.data -= rate * part.view_as(value)
        g_q = g_q - slopes(forgotten(ahead, step, 0), ahead)
        cosine = torch.cosine_similarity(g_r, g_q, dim=0)
        lam = max(0.0, 1.0 - cosine.item()) if weight is None else weight
        for value, part in zip(trained.values(), (g_r + lam * g_q).split(sizes), strict=True):
            value.grad = part.view_as(value)
        optimizer.step()
        losses.append((kept + gone).item())
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], sum(losses) / 2)


@pytest.mark.usefixtures("double_precision")
def test_two_epochs_as_released_keep_the_last_pass_alone(pipe, brief):
    """K times: inner steps on L_f, back to θ_i, outer steps on L_r + λ L_f; one Adam for all."""
    twin = copy.deepcopy(pipe)
    unlearned = small(
        EraseDiff, variant="released", weight=0.6, inner_passes=2, epoch_steps=2, iterations=3,
        group="noxattn", learning_rate=1e-4,
    ).unlearn(brief())  # fmt: skip

    concept, other, retained = (embed(twin, prompts) for prompts in (FORGET, ANCHOR, RETAIN))
    trained, unet = trainable(twin.unet, is_trained), twin.unet
    optimizer, steps = torch.optim.Adam(trained.values(), lr=1e-4), iter(range(12))

    def forgotten(step, stream):
        rows, x, _, t = noised(twin, noise_pictures(FORGET), 2, step, stream)
        return mse(eps(unet, x, t, concept[rows]), fixed(unet, x, t, other[rows]))

    def take(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for count in (2, 1):
        start = {name: value.detach().clone() for name, value in trained.items()}
        for _ in range(2):
            for _ in range(count):
                take(forgotten(next(steps), "inner"))
            for name, value in trained.items():
                value.data.copy_(start[name])
            for _ in range(count):
                step = next(steps)
                rows, x, noise, t = noised(twin, noise_pictures(RETAIN), 2, step, "retain")
                kept = mse(eps(unet, x, t, retained[rows]), noise)
                take(kept + 0.6 * forgotten(step, "forget"))
    assert next(steps, None) is None
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained])


@pytest.mark.parametrize("after", [1, 4, 5, 7, 10])
def test_resumed_anywhere_in_the_released_loops_it_ends_in_the_same_weights(warm, brief, after):
    method = small(EraseDiff, variant="released", inner_passes=2, epoch_steps=2, iterations=3)
    straight = method.unlearn(brief()).edits
    cut = Cut(after)
    warm.reset()
    with pytest.raises(Interrupted):
        method.unlearn(brief(checkpoints=cut))
    cut.after = 0
    warm.reset()
    assert same(method.unlearn(brief(checkpoints=cut)).edits, straight)


def test_without_inner_passes_every_step_remains():
    places = [Place.of(step, 3, 2, 0) for step in range(3)]
    assert all(place.is_outer and place.is_last_pass for place in places)


def test_the_inner_steps_are_undone_exactly():
    values = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 3))]
    before = [value.detach().clone() for value in values]
    turns = []

    def loss(turn):
        turns.append(turn)
        return sum((value**4).sum() for value in values)

    found = gradient_after(values, loss, 3, 0.01)
    assert turns == [1, 2, 3, 0]
    assert all(torch.equal(value, kept) for value, kept in zip(values, before, strict=True))
    for start, gradient in zip(before, found, strict=True):
        for _ in range(3):
            start = start - 0.01 * 4 * start**3
        torch.testing.assert_close(gradient, 4 * start**3)


def test_a_failure_within_the_inner_steps_is_undone_too():
    value = nn.Parameter(torch.ones(2))

    def loss(turn):
        if turn == 2:
            raise RuntimeError("stop")
        return value.sum()

    with pytest.raises(RuntimeError, match="stop"):
        gradient_after([value], loss, 2, 0.1)
    assert value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("retaining", "forgetting", "eta", "weight"),
    [([2.0, 0.0], [0.0, 3.0], 1.0, 1.0), ([1.0, 0.0], [-4.0, 0.0], 1.0, 2.0),
     ([1.0, 0.0], [4.0, 0.0], 0.5, 0.0), ([1.0, 1.0], [1.0, 0.0], 1.0, 1 - 0.5**0.5)],
)  # fmt: skip
def test_the_automatic_weight_grows_as_the_gradients_part(retaining, forgetting, eta, weight):
    r, f = (tuple(torch.tensor([x]) for x in some) for some in (retaining, forgetting))
    assert automatic_weight(r, f, eta).item() == pytest.approx(weight, abs=1e-6)
