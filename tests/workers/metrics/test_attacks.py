import contextlib

import pytest
import torch
from pydantic import ValidationError

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import Target
from tests.workers.unlearners.bundled import BASE, CONCEPT, unlearn
from workers.diffusion.sampling import sample
from workers.diffusion.soft_prompt import encode, nearest_tokens, token_ids
from workers.diffusion.text import embed
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.metric import ChosenMetric, Subject
from workers.metrics.concept_accuracy import ConceptAccuracy
from workers.metrics.ring_a_bell import RingABell, without_words
from workers.metrics.unlearn_diff_attack import UnlearnDiffAttack
from workers.recipes import SampleSettings
from workers.unlearners.uce import UCE

SAMPLING = SampleSettings(guidance=3.0, sampler_steps=10)
PROMPTS = BASE.prompts(CONCEPT)[:3]
TARGETS = (Target(CONCEPT, PROMPTS),)


@pytest.fixture(scope="module")
def bundled():
    return WarmPipeline(BASE, "cpu")


def subject(warm):
    warm_pictures = sample(
        warm.pipe, [Probe("erased", CONCEPT, p) for p in PROMPTS], SAMPLING.model_copy(
            update={"images_per_prompt": 2}
        ),
    )  # fmt: skip

    @contextlib.contextmanager
    def at(which):
        assert which == "final"
        yield warm.pipe

    return Subject(TARGETS, SAMPLING, warm_pictures, at, lambda: None, lambda *_: None)


def small(cls, **settings):
    return cls(cls.Settings(prompts=2, images_per_prompt=2, **settings))


@pytest.mark.parametrize(
    "attack",
    [
        small(UnlearnDiffAttack, iterations=2),
        small(UnlearnDiffAttack, iterations=2, discrete=False),
        small(RingABell, generations=2, candidates=8),
    ],
)
def test_an_attack_leaves_the_weights_alone_and_repeats_itself(bundled, attack):
    bundled.reset()
    asked = subject(bundled)
    first = attack.find(bundled.pipe, asked, PROMPTS[:2])
    assert first.shape == embed(bundled.pipe, PROMPTS[:2]).shape
    assert not bundled.changed()
    torch.manual_seed(5)
    assert torch.equal(attack.find(bundled.pipe, asked, PROMPTS[:2]), first)


def test_words_are_put_on_the_nearest_of_the_vocabulary(bundled):
    pipe = bundled.pipe
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer("red star", add_special_tokens=False).input_ids
    near = table[ids] + 1e-3 * torch.randn(len(ids), table.shape[1])
    assert nearest_tokens(pipe, near[None]).tolist() == [ids]


def test_discrete_tokens_are_a_prompt_that_can_be_typed(bundled):
    bundled.reset()
    attack = small(UnlearnDiffAttack, iterations=2, tokens=2)
    found = attack.find(bundled.pipe, subject(bundled), PROMPTS[:1])
    pipe = bundled.pipe
    words = [i for i in range(len(pipe.tokenizer)) if i not in pipe.tokenizer.all_special_ids]
    ids = token_ids(pipe, PROMPTS[:1], 2)
    candidates = []
    for first in words:
        rows = ids.repeat(len(words), 1)
        rows[:, 1], rows[:, 2] = first, torch.tensor(words)
        with torch.no_grad():
            candidates.append((encode(pipe, rows) - found).abs().amax(dim=(1, 2)).min())
    assert min(candidates) < 1e-5


def test_the_search_comes_nearer_to_its_target(bundled):
    bundled.reset()
    asked = subject(bundled)
    pipe = bundled.pipe

    def error(generations):
        attack = RingABell(RingABell.Settings(prompts=1, generations=generations, candidates=32))
        found = attack.find(pipe, asked, PROMPTS[:1])
        without = embed(pipe, [without_words(p, CONCEPT) for p in PROMPTS])
        target = without[:1] + 3 * (embed(pipe, PROMPTS) - without).mean(dim=0)
        return float((found - target).square().mean())

    assert error(20) < error(1)


def test_the_concepts_words_are_taken_out():
    assert without_words("a red star on a wall", "star") == "a red on a wall"


@pytest.mark.slow
def test_an_attack_brings_an_erased_star_back(bundled):
    bundled.reset()
    asked = subject(bundled)
    unlearn(bundled, UCE(UCE.Settings()))
    attack = UnlearnDiffAttack(
        UnlearnDiffAttack.Settings(
            prompts=3, images_per_prompt=4, iterations=100, learning_rate=0.05, discrete=False
        )
    )
    score = attack.score_pipeline(asked).metrics
    assert score["gain"] == pytest.approx(score["success"] - score["plain"])
    assert score["plain"] <= 0.4
    assert score["success"] >= score["plain"] + 0.3


@pytest.mark.parametrize(
    "judge", ["weight_distance", "finetune_success", "fid", "lpips", "ring_a_bell"]
)
def test_a_judge_must_score_single_pictures(judge):
    with pytest.raises(ValidationError, match=rf"judge\n.* pictures but got '{judge}' \(allowed: "):
        UnlearnDiffAttack.Settings(judge=judge)


def test_a_judge_must_exist():
    with pytest.raises(ValidationError, match=r"judge\n.*unknown metric 'no-such-metric'"):
        UnlearnDiffAttack.Settings(judge="no-such-metric")


@pytest.mark.parametrize("attack", [RingABell, UnlearnDiffAttack])
def test_the_judge_is_the_bundled_one_unless_it_is_chosen(attack, clip_folder):
    assert attack(attack.Settings()).judge.name == "concept_accuracy"
    by_clip = attack(attack.Settings(judge=clip(clip_folder)))
    assert by_clip.judge.name == "clip_accuracy"
    assert by_clip.judge.settings.classes == ("star", "heart")


def clip(folder):
    return {"clip_accuracy": {"classes": ["star", "heart"], "model": str(folder)}}


def test_stored_settings_give_the_judge_again(clip_folder):
    settings = RingABell.Settings(judge=clip(clip_folder))
    assert RingABell.Settings.model_validate(settings.full()) == settings


def test_another_judge_is_another_fingerprint(clip_folder):
    class Newer(ConceptAccuracy):
        version = ConceptAccuracy.version + 1

    judges = [
        ConceptAccuracy(ConceptAccuracy.Settings()),
        Newer(Newer.Settings()),
        ChosenMetric.read(clip(clip_folder)).plugin,
    ]
    attacks = [RingABell(RingABell.Settings(judge=ChosenMetric(judge))) for judge in judges]
    assert len({attack.fingerprint() for attack in attacks}) == 3


def test_weights_of_the_judge_are_in_the_fingerprint(tmp_path):
    (tmp_path / "weights").write_text("one")
    first = RingABell(RingABell.Settings(judge=clip(tmp_path))).fingerprint()
    (tmp_path / "weights").write_text("two")
    assert RingABell(RingABell.Settings(judge=clip(tmp_path))).fingerprint() != first


def test_what_the_judge_cannot_judge_the_attack_cannot(clip_folder):
    attack = RingABell(RingABell.Settings(judge=clip(clip_folder)))
    assert attack.problems(BASE, "star") == []
    [problem] = attack.problems(BASE, "circle")
    assert problem.startswith("metric 'ring_a_bell': judge: metric 'clip_accuracy' has no class")


def test_the_chosen_judge_judges(bundled, clip_folder):
    bundled.reset()
    attack = small(RingABell, generations=1, candidates=4, judge=clip(clip_folder))
    found = attack.score_pipeline(subject(bundled)).metrics
    assert 0 <= found["success"] <= 1
    assert found["gain"] == pytest.approx(found["success"] - found["plain"])
