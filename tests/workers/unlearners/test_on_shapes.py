"""The methods on the bundled model, with the defaults that ship."""

import pytest

from workers.bases.shapes import Shapes
from workers.checkpoints import NoCheckpoints
from workers.datasets.related import Related
from workers.finetune import Trainer
from workers.metrics.base import Probe
from workers.metrics.concept_accuracy import ConceptAccuracy
from workers.pipeline import WarmPipeline
from workers.recipes import FinetuneSettings, SampleSettings
from workers.sampling import sample
from workers.unlearners.base import Erasure
from workers.unlearners.esd import ESD
from workers.unlearners.uce import UCE

BASE = Shapes(Shapes.Settings())
RETAINED = BASE.retained("star")


@pytest.fixture(scope="module")
def bundled():
    return WarmPipeline(BASE, "cpu")


def accuracy(pipe):
    probes = [Probe("erased", "star", prompt) for prompt in BASE.prompts("star")]
    probes += [Probe("retained", c, prompt) for c in RETAINED for prompt in BASE.prompts(c)[:4]]
    settings = SampleSettings(
        images_per_prompt=4, guidance=BASE.guidance, sampler_steps=BASE.sampler_steps
    )
    pictures = sample(pipe, probes, settings)
    return ConceptAccuracy(ConceptAccuracy.Settings()).score_images(pictures).metrics


def erase(warm, method):
    """Make the base with what the method's edits change of it."""
    warm.reset()
    unlearned = method.unlearn(
        Erasure(
            pipe=warm.pipe,
            concept="star",
            prompts=BASE.prompts("star"),
            retained_prompts=tuple(p for c in RETAINED for p in BASE.prompts(c)),
            anchor_prompts=BASE.prompts(BASE.anchor("star")),
            seed=0,
            progress=lambda *_: None,
            checkpoints=NoCheckpoints(),
        )
    )
    warm.put(unlearned.edits)


@pytest.mark.slow
def test_the_base_draws_stars(bundled):
    bundled.reset()
    assert accuracy(bundled.pipe)["erased"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", [ESD(ESD.Settings()), UCE(UCE.Settings())])
def test_defaults_erase_the_star_and_keep_every_other_shape(bundled, method):
    erase(bundled, method)
    after = accuracy(bundled.pipe)
    assert after["erased"] <= 0.2
    # 0.81 where it was tuned; one picture of a shape's sixteen is left to other CPUs' rounding.
    assert min(after[f"retained.{shape}"] for shape in RETAINED) >= 0.75


@pytest.mark.slow
def test_ordinary_fine_tuning_brings_an_erased_star_back(bundled):
    erase(bundled, ESD(ESD.Settings(variant="u")))
    before = accuracy(bundled.pipe)["erased"]
    data = Related(Related.Settings()).examples("star", 32)
    trainer = Trainer(bundled.pipe, FinetuneSettings(learning_rate=3e-4), data, seed=0)
    trainer.train_to(100)
    trainer.finish()
    assert before <= 0.2
    assert accuracy(bundled.pipe)["erased"] >= before + 0.3
