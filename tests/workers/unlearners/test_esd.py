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
@pytest.mark.parametrize("erase_from", [None, "a shape"])
def test_two_iterations_are_the_published_equation(pipe, brief, x_from, erase_from):
    """MSE(ε_θ(x_t, f), ε*(f) - (η + 1) (ε*(c) - ε*(∅))), f the concept unless it is given."""
    twin = copy.deepcopy(pipe)
    eta = 1.5
    unlearned = unlearn(brief(), negative_guidance=eta, erase_from=erase_from, x_from=x_from)

    original, student = copy.deepcopy(twin.unet), twin.unet
    drawer = student if x_from == "student" else original
    prompts, (empty,) = embed(twin, FORGET), embed(twin, [""])
    trained = trainable(student, lambda name: "attn2." in name)

    def loss(step):
        c = pick(prompts, 2, step)
        f = c if erase_from is None else embed(twin, [erase_from] * 2)
        x, t = partly_denoised(twin, drawer, f, empty, 3.0, step)
        away = fixed(original, x, t, c) - fixed(original, x, t, empty.expand_as(c))
        return mse(eps(student, x, t, f), fixed(original, x, t, f) - (eta + 1) * away)

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


@pytest.mark.parametrize("group", BELONGS)
def test_only_the_group_moves_and_all_of_it_does(warm, erasure, group):
    (edit,) = unlearn(erasure(), group=group).edits
    warm.put([edit])
    names = {name for name in warm.base_state() if name.startswith("unet.")}
    assert edit.values.keys() == warm.changed().keys()
    assert set(warm.changed()) == {name for name in names if BELONGS[group](name)}


def test_only_the_group_has_gradients_while_it_trains(pipe, brief):
    seen = set()

    def look(*_):
        seen.update(name for name, p in pipe.unet.named_parameters() if p.requires_grad)

    unlearn(brief(progress=look), group="x-strict")
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


def test_erasing_from_nothing_with_no_concept_in_it_leaves_nothing_to_learn(erasure):
    unlearned = unlearn(erasure(prompts=("",)), erase_from="a star", iterations=1)
    assert unlearned.numbers["loss"] == pytest.approx(0, abs=1e-10)


def test_a_drawing_of_2023_is_another_result(warm, erasure):
    results = []
    for drawing in ("newer", "2023"):
        warm.reset()
        results.append(unlearn(erasure(), drawing=drawing).numbers["loss"])
    assert results[0] != pytest.approx(results[1], rel=1e-3)


def test_what_it_costs_counts_what_is_drawn_and_the_third_pass_of_erase_from():
    shape = {"iterations": 10, "batch_size": 2, "sampler_steps": 50}
    costs = [
        small(ESD, **(shape | more)).passes()
        for more in ({}, {"erase_from": "a shape"}, {"drawing": "2023"})
    ]
    assert costs == [10 * (98 + 10), 10 * (98 + 12), 10 * (102 + 10)]


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
        ({"group": "u"}, 1e-4),
        ({"group": "u", "learning_rate": None}, 1e-4),
        ({"group": "u", "learning_rate": 0.5}, 0.5),
    ],
)
def test_a_group_has_its_own_rate_and_the_number_is_stored(given, rate):
    settings = ESD.Settings(**given)
    assert settings.learning_rate == rate
    assert settings.full()["learning_rate"] == settings.identity()["learning_rate"] == rate


def test_an_unknown_group_is_the_only_error():
    with pytest.raises(ValueError, match="1 validation error"):
        ESD.Settings(group="y")
