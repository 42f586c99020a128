"""What every unlearning method must do. A new file in `workers/unlearners/` is tested as it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from orchestrator.core.concepts import ConceptSet, Target
from orchestrator.core.registry import find, registry
from orchestrator.core.settings import PresetSettings
from tests.workers.conftest import TinyShapes
from tests.workers.unlearners.small import NoCheckpoints, make_materials, small
from workers.diffusion.text import embed
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearner

METHODS = [name for name, cls in registry("unlearner").items() if cls.changes and cls.is_method]
TRAINED = [name for name in METHODS if issubclass(find("unlearner", name).Settings, TrainSettings)]

every_method = pytest.mark.parametrize("name", METHODS)
every_trained = pytest.mark.parametrize("name", TRAINED)


class OneRetained(TinyShapes):
    """Little to retain, so that materials are quickly made."""

    def retained(self, concept):
        return ("circle",)


@pytest.fixture(scope="module")
def base():
    return OneRetained(OneRetained.Settings())


@pytest.fixture(scope="module")
def warm(base):
    return WarmPipeline(base, "cpu")


@pytest.fixture(scope="module")
def materials(warm, base):
    """A method's materials, made once: they depend on the base alone."""
    made = {}

    def get(method):
        if method.name not in made:
            made[method.name] = make_materials(warm.pipe, method, base, ConceptSet.of("star"))
        return made[method.name]

    return get


@pytest.fixture
def run(warm, base, materials):
    """Unlearn the star from the base with a small instance of a method."""

    def unlearn(name, seed=0, checkpoints=None, damage=None, **settings):
        warm.reset()
        method = small(find("unlearner", name), **settings)
        pipe, works_from = warm.pipe, materials(method)
        if damage:
            damage(pipe)
        star = Target("star", base.prompts("star"), base.prompts(base.anchor("star")))
        return method.unlearn(
            Erasure(
                pipe=pipe,
                targets=(star,),
                retained_prompts=base.retained_prompts("star"),
                seed=seed,
                progress=lambda *_: None,
                checkpoints=checkpoints or NoCheckpoints(),
                materials=works_from,
            )
        )

    return unlearn


def noise(pipe):
    """ε of a prompt about the concept and of one that is not, from fixed latents."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    text = embed(pipe, ["a star", "a red circle"])
    with torch.no_grad():
        return pipe.unet(latents, 500, encoder_hidden_states=text).sample


def same(one, other):
    """Whether two lists of edits are the same, bit for bit."""
    pairs = list(zip(one, other, strict=True))
    return all(a.kind == b.kind and a.config() == b.config() for a, b in pairs) and all(
        a.tensors().keys() == b.tensors().keys()
        and all(torch.equal(a.tensors()[n], b.tensors()[n]) for n in a.tensors())
        for a, b in pairs
    )


@every_method
def test_it_says_what_it_is(name):
    cls = find("unlearner", name)
    assert issubclass(cls, Unlearner)
    assert cls.summary().endswith(".")
    assert cls.paper
    assert all(field.description for field in cls.Settings.model_fields.values())
    assert cls(cls.Settings()).passes() >= 0


@every_method
def test_its_edits_change_the_model_and_nothing_else_does(run, warm, name):
    warm.reset()
    before = noise(warm.pipe)
    made = run(name)
    warm.put(made.edits)
    named = {n for e in made.edits if e.kind == "weights" for n in e.values}
    named |= {f"unet.{p}.weight" for e in made.edits if e.kind == "lora" for p in e.factors}
    assert not torch.equal(noise(warm.pipe), before)
    assert set(warm.changed()) <= named
    assert all(math.isfinite(value) for value in made.numbers.values())


@every_method
def test_undoing_gives_the_base_bit_for_bit(run, warm, name):
    warm.reset()
    before = noise(warm.pipe)
    made = run(name)
    warm.put(made.edits)
    warm.reset()
    assert warm.changed() == {}
    assert torch.equal(noise(warm.pipe), before)


@every_method
def test_what_is_stored_is_the_model(run, warm, tmp_path, name):
    made = run(name)
    warm.put(made.edits)
    expected, weights = noise(warm.pipe), warm.changed()
    save_edits(tmp_path / "edits.safetensors", warm.edits)
    warm.put(load_edits(tmp_path / "edits.safetensors"))
    again = warm.changed()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[n], weights[n]) for n in weights)
    assert torch.equal(noise(warm.pipe), expected)


@every_method
def test_edits_stack_on_another_methods(run, warm, name):
    first, second = run("uce"), run(name)
    warm.put([*first.edits, *second.edits])
    both = noise(warm.pipe)
    warm.put(warm.now())
    assert torch.allclose(noise(warm.pipe), both, atol=1e-6)


@every_method
def test_randomness_comes_from_the_seed_alone(run, name):
    first = run(name).edits
    torch.manual_seed(99)
    assert same(run(name).edits, first)
    is_seeded = find("unlearner", name).seeded
    assert same(run(name, seed=1).edits, first) != is_seeded


class Interrupted(Exception):
    """The machine went away."""


class Cut:
    """Checkpoints at every step in memory; the n-th is followed by an interruption."""

    def __init__(self, after):
        self.after = after
        self.kept = {}
        self.saves = 0

    def load(self, phase):
        return copy.deepcopy(self.kept.get(phase))

    def is_due(self):
        return True

    def save(self, phase, step, tensors):
        self.kept[phase] = (step, {n: t.detach().clone() for n, t in tensors.items()})
        self.saves += 1
        if self.saves == self.after:
            raise Interrupted


@every_trained
def test_resumed_midway_it_ends_in_the_same_edits(run, name):
    straight = run(name, iterations=3).edits
    whole = Cut(after=0)
    run(name, iterations=3, checkpoints=whole)
    for after in {1, whole.saves - 1, whole.saves}:
        cut = Cut(after)
        with pytest.raises(Interrupted):
            run(name, iterations=3, checkpoints=cut)
        cut.after = 0
        assert same(run(name, iterations=3, checkpoints=cut).edits, straight)


@every_trained
def test_a_loss_that_is_not_finite_stops_it(run, name):
    def damage(pipe):
        with torch.no_grad():
            pipe.unet.conv_in.weight.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="lower the unlearner's learning_rate"):
        run(name, damage=damage)


@every_trained
def test_memory_saving_options_compute_the_same(run, warm, name):
    plain = run(name)
    warm.put(plain.edits)
    expected = noise(warm.pipe)
    warm.put(run(name, gradient_checkpointing=True).edits)
    assert torch.allclose(noise(warm.pipe), expected, atol=1e-4)
    warm.put(run(name, precision="bf16").edits)
    assert torch.isfinite(noise(warm.pipe)).all()


@every_method
def test_bad_settings_are_refused(name):
    settings = find("unlearner", name).Settings
    with pytest.raises(ValidationError):
        settings(no_such_setting=1)
    for field in settings.model_fields:
        with pytest.raises(ValidationError):
            settings(**{field: {"not": "a value"}})
    if issubclass(settings, TrainSettings):
        for field in ("iterations", "learning_rate", "batch_size"):
            with pytest.raises(ValidationError):
                settings(**{field: -1})


@every_method
def test_presets_are_valid_values_and_no_part_of_the_identity(name):
    settings = find("unlearner", name).Settings
    assert issubclass(settings, PresetSettings)
    with pytest.raises(ValidationError, match="unknown preset"):
        settings(preset="no-such-preset")
    for preset, begun in settings.PRESETS.items():
        values = begun.values
        assert settings(preset=preset).identity() == settings(**values).identity()
        assert "preset" not in settings(preset=preset).full()
        assert settings.model_validate(settings(preset=preset).full()) == settings(**values)


@every_method
def test_its_edits_fit_a_model_without_storage(run, warm, base, name):
    """The meta device checks every shape on the way through the UNet and computes nothing."""
    made = run(name)
    warm.reset()
    pipe = base.load("meta")
    for edit in made.edits:
        edit.apply(pipe)
    latents = torch.empty(3, 4, 8, 8, device="meta")
    text = torch.empty(3, 16, pipe.unet.config.cross_attention_dim, device="meta")
    assert pipe.unet(latents, 5, encoder_hidden_states=text).sample.shape == latents.shape
