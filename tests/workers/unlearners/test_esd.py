import pytest
import torch

from workers.negative_guidance import erased_target
from workers.unlearners.esd import ESD

SHORT = {"iterations": 2, "batch_size": 2, "sampler_steps": 3, "learning_rate": 1e-3}


def unlearn(erasure, **settings):
    return ESD(ESD.Settings(**(SHORT | settings))).unlearn(erasure)


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
    unlearn(erasure(), variant=variant)
    names = {name for name in warm.base_state() if name.startswith("unet.")}
    assert set(warm.changed()) == {name for name in names if BELONGS[variant](name)}


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
    unlearn(erasure())
    first = warm.changed()
    warm.reset()
    torch.manual_seed(5)
    unlearn(erasure())
    second = warm.changed()
    assert all(torch.equal(first[name], second[name]) for name in first)
    warm.reset()
    unlearn(erasure(seed=1))
    assert not all(torch.equal(first[name], value) for name, value in warm.changed().items())


def test_an_anchor_identical_to_the_concept_leaves_nothing_to_learn(erasure):
    numbers = unlearn(erasure(prompts=("a star",)), erase_from="a star", iterations=1)
    assert numbers["loss"] == pytest.approx(0, abs=1e-10)


def test_the_student_draws_x_t_unless_told_otherwise(warm, erasure):
    results = []
    for who in ("student", "frozen"):
        warm.reset()
        unlearn(erasure(), x_from=who, iterations=4)
        results.append(warm.changed())
    assert not all(torch.equal(results[0][name], results[1][name]) for name in results[0])


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
