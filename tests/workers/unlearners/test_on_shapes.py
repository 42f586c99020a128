"""Resurgence on the bundled model: what this project is about, without any of its orchestration."""

import pytest

from tests.workers.unlearners.bundled import BASE, CONCEPT, accuracy, unlearn
from workers.datasets.related import Related
from workers.editing.pipeline import WarmPipeline
from workers.recipes import FinetuneSettings
from workers.training.finetune import Trainer
from workers.unlearners.esd import ESD


@pytest.mark.slow
def test_ordinary_fine_tuning_brings_an_erased_star_back():
    warm = WarmPipeline(BASE, "cpu")
    unlearn(warm, ESD(ESD.Settings(group="u")))
    before, _ = accuracy(warm.pipe)
    data = Related(Related.Settings()).examples(CONCEPT, 32)
    trainer = Trainer(warm.pipe, FinetuneSettings(learning_rate=3e-4), data, seed=0)
    trainer.train_to(100)
    trainer.finish()
    after, _ = accuracy(warm.pipe)
    assert before <= 0.2
    assert after >= before + 0.3
