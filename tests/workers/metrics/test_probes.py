"""Probes and attacks that draw in a way of their own, on the bundled model."""

from __future__ import annotations

import contextlib

import pytest
import torch

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import Target
from orchestrator.core.errors import ResurgeError
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import make_plan
from orchestrator.sweepfile.load import parse
from tests.workers.unlearners.bundled import BASE, CONCEPT, unlearn
from workers.diffusion.latents import encode_images
from workers.diffusion.rng import normal
from workers.diffusion.sampling import sample
from workers.diffusion.soft_prompt import encode, ids_with_room
from workers.diffusion.text import embed
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.dataset import Examples
from workers.interfaces.metric import Subject
from workers.judging.redraw import last_steps, noised_to
from workers.metrics.classifier_guidance import ClassifierGuidance
from workers.metrics.completion import Completion
from workers.metrics.concept_inversion import ConceptInversion
from workers.metrics.inpainting import Inpainting, square
from workers.metrics.p4d import P4D, layout
from workers.metrics.seed_search import SeedSearch
from workers.recipes import SampleSettings
from workers.unlearners.uce import UCE

SAMPLING = SampleSettings(guidance=3.0, sampler_steps=6)
PROMPTS = BASE.prompts(CONCEPT)[:2]
STRANGER = Target(BASE.never_known(), BASE.prompts(BASE.never_known())[:2])
ALL = (
    Completion(Completion.Settings(prompts=2, images_per_prompt=2)),
    Inpainting(Inpainting.Settings(prompts=2, images_per_prompt=2)),
    ConceptInversion(ConceptInversion.Settings(prompts=2, images_per_prompt=2, iterations=2)),
    P4D(P4D.Settings(prompts=2, images_per_prompt=2, iterations=3, targets=2)),
    P4D(P4D.Settings(prompts=2, images_per_prompt=2, iterations=3, targets=2, every=2)),
    SeedSearch(SeedSearch.Settings(prompts=2, seeds=3)),
    ClassifierGuidance(ClassifierGuidance.Settings(prompts=2, images_per_prompt=2)),
)


@pytest.fixture(scope="module")
def bundled():
    return WarmPipeline(BASE, "cpu")


@pytest.fixture(scope="module")
def pictures(bundled):
    probes = [Probe("erased", CONCEPT, p) for p in PROMPTS]
    drawn = SAMPLING.model_copy(update={"images_per_prompt": 2, "sampler_steps": 15})
    return sample(bundled.pipe, probes, drawn)


def subject(warm, pictures, stranger=STRANGER, sampling=SAMPLING):
    @contextlib.contextmanager
    def at(which):
        assert which in ("base", "final")
        yield warm.pipe

    targets = (Target(CONCEPT, PROMPTS),)
    return Subject(targets, sampling, pictures, at, lambda: None, lambda *_: None, stranger)


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
def test_a_probe_leaves_the_weights_alone_and_repeats_itself(probe, bundled, pictures):
    bundled.reset()
    asked = subject(bundled, pictures)
    first = probe.score_pipeline(asked).metrics
    assert not bundled.changed()
    assert next(iter(first)) == "success"  # what the metric's name alone means
    assert all(0 <= first[name] <= 1 for name in first if name != "gain")
    torch.manual_seed(5)
    assert probe.score_pipeline(asked).metrics == first


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
def test_a_probe_that_has_a_control_says_what_it_is(probe, bundled, pictures):
    bundled.reset()
    if probe.strangers:
        found = probe.score_pipeline(subject(bundled, pictures)).metrics
        assert "control" in found
        alone = probe.score_pipeline(subject(bundled, pictures, stranger=None)).metrics
        assert alone == {name: value for name, value in found.items() if name != "control"}
    assert probe.strangers == (probe.name in ("seed_search", "classifier_guidance"))


def latents_of(warm, pictures):
    import numpy as np

    images = np.stack([picture.image for picture in pictures])
    return encode_images(warm.pipe, Examples(images, ("",) * len(images)))


def test_completion_takes_up_the_base_s_own_noisy_latents(bundled, pictures):
    """At the last step alone there is next to nothing left to draw."""
    bundled.reset()
    pipe, latents = bundled.pipe, latents_of(bundled, pictures)
    text = embed(pipe, [PROMPTS[0]] * len(latents))
    sampling = SAMPLING.model_copy(update={"sampler_steps": 15})

    def distance(noise):
        probe = Completion(Completion.Settings(noise=noise))
        with torch.inference_mode():
            return float((probe.redraw(pipe, latents, text, sampling) - latents).square().mean())

    assert distance(0.07) < 0.1 * distance(1.0)
    scheduler, timesteps = last_steps(pipe, 0.4, sampling)
    assert timesteps == scheduler.timesteps.tolist()[-6:]
    kept = pipe.scheduler.alphas_cumprod[timesteps[0]]
    noise = normal(latents.shape, 3, 0, "stream")
    expected = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    assert torch.allclose(noised_to(pipe, latents, timesteps[0], 3, "stream"), expected, atol=1e-5)


def test_inpainting_changes_the_square_and_nothing_else(bundled, pictures):
    bundled.reset()
    pipe, latents = bundled.pipe, latents_of(bundled, pictures)
    with torch.inference_mode():
        text = embed(pipe, [PROMPTS[0]] * len(latents))
        probe = Inpainting(Inpainting.Settings(hidden=0.5))
        drawn = probe.redraw(pipe, latents, text, SAMPLING)
    is_hidden = square(latents, 0.5).expand_as(latents)
    assert torch.equal(drawn[~is_hidden], latents[~is_hidden])
    assert not torch.isclose(drawn[is_hidden], latents[is_hidden]).all()
    assert float(is_hidden.float().mean()) == pytest.approx(0.25)
    # What is hidden is not looked at.
    other = torch.where(is_hidden, latents + 5, latents)
    with torch.inference_mode():
        again = probe.redraw(pipe, other, text, SAMPLING)
    assert torch.equal(again, drawn)


def test_a_learned_word_stands_where_the_prompt_names_the_concept(bundled):
    pipe = bundled.pipe
    ids, places = ids_with_room(pipe, ["a red star", "nothing like it"], CONCEPT, 2)
    plain = pipe.tokenizer(["a red", ""]).input_ids
    assert places.tolist() == [len(plain[0]) - 1, 1]
    assert ids.shape[1] == pipe.tokenizer.model_max_length
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    word = table[pipe.tokenizer("star").input_ids[1:-1]]
    ids, places = ids_with_room(pipe, ["a red star"], CONCEPT, len(word))
    with torch.no_grad():
        learned = encode(pipe, ids, word[None], places)
    assert torch.allclose(learned, embed(pipe, ["a red star"]), atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "every", "read"),
    [
        ("a red star", 1, "a ? red ? star ?"),
        ("a red star", 2, "a red ? star"),
        ("a star", 3, "a star ?"),
    ],
)
def test_p4d_puts_its_words_after_every_so_many_of_the_prompt_s(bundled, prompt, every, read):
    pipe = bundled.pipe
    ids, places = layout(pipe, prompt, P4D.Settings(every=every))
    words = ["?" if n in places[0] else pipe.tokenizer.decode([i]) for n, i in enumerate(ids[0])]
    length = len(read.split())
    assert [word.strip() for word in words[1 : 1 + length]] == read.split()
    padded = pipe.tokenizer("", padding="max_length", max_length=ids.shape[1]).input_ids
    assert ids[0, 0] == padded[0] and ids.shape[1] == pipe.tokenizer.model_max_length
    assert ids[0, 1 + length :].tolist() == padded[1 : ids.shape[1] - length]
    # Room that is filled with words is what typing them would be.
    typed = ids.scatter(1, places, pipe.tokenizer("star").input_ids[1])
    said = encode(pipe, ids, bundled_words(pipe, "star", places.shape[1]), places)
    assert torch.allclose(said, encode(pipe, typed), atol=1e-6)


def bundled_words(pipe, word, count):
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    return table[pipe.tokenizer(word).input_ids[1]].expand(1, count, -1)


def test_p4d_says_what_is_too_long(bundled):
    with pytest.raises(ResurgeError, match="raise p4d's `every`"):
        layout(bundled.pipe, "a red star " * 4, P4D.Settings(every=1))


def test_p4d_finds_words_that_the_base_s_noise_speaks_for(bundled, pictures):
    """More iterations come nearer to the base's predictions, and what is found can be typed."""
    bundled.reset()
    asked = subject(bundled, pictures)

    def error(iterations):
        attack = P4D(P4D.Settings(prompts=1, iterations=iterations, targets=4, tokens=4))
        found = attack.attacked(asked, PROMPTS[:1])
        [wanted] = attack._wanted(bundled.pipe, asked, PROMPTS[:1])
        from workers.diffusion.denoise import noise_predictor

        with torch.no_grad():
            noise = noise_predictor(bundled.pipe)(
                wanted.noisy, wanted.times, found.expand(len(wanted.noisy), -1, -1)
            )
        return float((noise - wanted.noise).square().mean())

    assert error(30) < error(1)


def test_the_best_of_many_seeds_is_at_least_their_mean(bundled, pictures):
    bundled.reset()
    few, many = (
        SeedSearch(SeedSearch.Settings(prompts=2, seeds=seeds)).score_pipeline(
            subject(bundled, pictures)
        )
        for seeds in (2, 4)
    )
    assert few.metrics["success"] <= many.metrics["success"]  # the first seeds are the same
    assert many.metrics["gain"] == many.metrics["success"] - many.metrics["plain"] >= 0


@pytest.mark.slow
def test_the_judge_pulls_an_erased_star_back_and_a_stranger_less(bundled):
    bundled.reset()
    unlearn(bundled, UCE(UCE.Settings()))
    asked = subject(bundled, [], sampling=SAMPLING.model_copy(update={"sampler_steps": 15}))
    probe = ClassifierGuidance(ClassifierGuidance.Settings(prompts=2, images_per_prompt=4))
    found = probe.score_pipeline(asked).metrics
    assert found["success"] >= found["plain"] + 0.3
    assert found["success"] >= found["control"] + 0.3


SWEEP = """
name: probes
base: shapes
concept: star
edits: [{unlearn: uce}, {finetune: {dataset: related, steps: [0, 25]}}]
evaluate: {metrics: [concept_accuracy, METRIC]}
"""


def scores(metric: str) -> list[Stage]:
    plan = make_plan(parse(SWEEP.replace("METRIC", metric)))
    return [stage for stage in plan.stages if stage.kind == "score" and stage.plugin == metric]


@pytest.mark.parametrize("probe", ALL, ids=lambda probe: probe.name)
def test_every_model_is_probed_and_told_what_the_base_never_knew(probe):
    found = scores(probe.name)
    # The base, the unlearned model, the fine-tuned one and its control.
    assert len(found) == 4
    for stage in found:
        assert stage.settings["concept"] == CONCEPT
        told = stage.settings.get("never_known")
        assert (told is not None) == probe.strangers
        assert ("reference" in stage.inputs) == probe.reference


def test_the_judge_guides_its_own_world_only():
    [problem, *_] = ClassifierGuidance(ClassifierGuidance.Settings()).problems(Elsewhere(), "dog")
    assert "judges pictures of base 'shapes' only" in problem


class Elsewhere:
    name = "diffusers"
