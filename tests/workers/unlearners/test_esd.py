import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    SAMPLER_STEPS,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    partly_denoised,
    pick,
    trainable,
)
from workers.diffusion.text import embed
from workers.erasure.negative_guidance import erased_target
from workers.unlearners.esd import ESD


def unlearn(erasure, **settings):
    return small(
        ESD, **({"sampler_steps": SAMPLER_STEPS, "learning_rate": 1e-3} | settings)
    ).unlearn(erasure)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("x_from", ["student", "frozen"])
def test_two_iterations_are_the_published_equation(pipe, brief, x_from):
    """MSE(ε_θ(x_t, c), ε*(a) - η (ε*(c) - ε*(a)))."""
    twin = copy.deepcopy(pipe)
    eta = 1.5
    unlearned = unlearn(brief(), negative_guidance=eta, erase_from="a shape", x_from=x_from)

    original, student = copy.deepcopy(twin.unet), twin.unet
    drawer = student if x_from == "student" else original
    prompts, (empty, a) = embed(twin, FORGET), embed(twin, ["", "a shape"])
    trained = trainable(student, lambda name: "attn2." in name)

    def loss(step):
        c = pick(prompts, 2, step)
        x, t = partly_denoised(twin, drawer, c, empty, 3.0, step)
        away = fixed(original, x, t, a.expand_as(c))
        return mse(eps(student, x, t, c), away - eta * (fixed(original, x, t, c) - away))

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-3), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def is_norm(name):
    return "norm" in name


BELONGS = {
    "x": lambda name: "attn2." in name,
    "x-strict": lambda name: "attn2.to_k" in name or "attn2.to_v" in name,
    "u": lambda name: "attn2." not in name and not is_norm(name),
    "noxattn": lambda name: (
        "attn2." not in name
        and not name.startswith(("unet.conv_out", "unet.conv_norm_out", "unet.time_embedding"))
    ),
}


@pytest.mark.parametrize("variant", BELONGS)
def test_only_the_variants_group_moves_and_all_of_it_does(warm, erasure, variant):
    (edit,) = unlearn(erasure(), variant=variant).edits
    warm.put([edit])
    names = {name for name in warm.base_state() if name.startswith("unet.")}
    assert edit.values.keys() == warm.changed().keys()
    assert set(warm.changed()) == {name for name in names if BELONGS[variant](name)}


def test_only_the_group_has_gradients_while_it_trains(pipe, brief):
    seen = set()

    def look(*_):
        seen.update(name for name, p in pipe.unet.named_parameters() if p.requires_grad)

    unlearn(brief(progress=look), variant="x-strict")
    assert seen == {name for name, _ in pipe.unet.named_parameters() if BELONGS["x-strict"](name)}


def test_eta_and_the_released_codes_guidance_are_one_apart():
    concept, empty = torch.randn(4), torch.randn(4)
    eta = 1.5
    released = concept - (eta + 1) * (concept - empty)
    torch.testing.assert_close(erased_target(concept, empty, eta), released)


def test_no_negative_guidance_trains_towards_the_anchor():
    concept, empty = torch.randn(4), torch.randn(4)
    assert torch.equal(erased_target(concept, empty, 0.0), empty)


def test_the_pipeline_is_left_plain(pipe, erasure):
    unlearn(erasure())
    assert not pipe.unet.training
    assert not any(p.requires_grad or p.grad is not None for p in pipe.unet.parameters())


def test_the_same_seed_gives_the_same_weights(warm, erasure):
    results = []
    for seed, other in ((0, 4), (0, 5), (1, 4)):
        warm.reset()
        torch.manual_seed(other)
        results.append(unlearn(erasure(seed=seed)).edits[0].values)
    first, second, third = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], third[name]) for name in first)


def test_an_anchor_identical_to_the_concept_leaves_nothing_to_learn(erasure):
    unlearned = unlearn(erasure(prompts=("a star",)), erase_from="a star", iterations=1)
    assert unlearned.numbers["loss"] == pytest.approx(0, abs=1e-10)


def test_progress_ends_at_the_last_iteration(erasure):
    calls = []
    unlearn(erasure(progress=lambda *call: calls.append(call)))
    assert calls[-1][:2] == (2, 2)
    assert calls[-1][2]["loss"] > 0


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_no_gradients(pipe, erasure):
    with torch.no_grad():
        pipe.unet.conv_in.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower the unlearner's learning_rate"):
        unlearn(erasure())
    assert not any(p.requires_grad or p.grad is not None for p in pipe.unet.parameters())


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 3e-4),
        ({"variant": "u"}, 1e-4),
        ({"variant": "u", "learning_rate": None}, 1e-4),
        ({"variant": "u", "learning_rate": 0.5}, 0.5),
    ],
)
def test_a_variant_has_its_own_rate_and_the_number_is_stored(given, rate):
    settings = ESD.Settings(**given)
    assert settings.learning_rate == rate
    assert settings.full()["learning_rate"] == settings.identity()["learning_rate"] == rate


def test_an_unknown_variant_is_the_only_error():
    with pytest.raises(ValueError, match="1 validation error"):
        ESD.Settings(variant="y")
