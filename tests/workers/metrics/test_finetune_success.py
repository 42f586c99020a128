import contextlib

import numpy as np
import pytest
import torch

from orchestrator.core.concepts import Target
from orchestrator.core.errors import ResurgeError
from workers.interfaces.dataset import Examples
from workers.interfaces.metric import Subject
from workers.metrics.finetune_success import FinetuneSuccess
from workers.recipes import FinetuneSettings, SampleSettings
from workers.training.finetune import Trainer

METRIC = FinetuneSuccess(FinetuneSuccess.Settings(draws=64))


def examples():
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    return Examples(images, ("a star", "a circle", "a red star", "a heart"))


def subject(pipe, before, final, data):
    """`before` and `final` make the pipeline what it is to be."""

    @contextlib.contextmanager
    def at(which):
        {"before": before, "final": final}[which]()
        yield pipe

    star = (Target("star", ("a star",)),)
    return Subject(star, SampleSettings(), (), at, lambda: data, lambda *_: None)


def test_the_same_model_has_learned_nothing(pipe):
    score = METRIC.score_pipeline(subject(pipe, lambda: None, lambda: None, examples())).metrics
    assert score["share"] == 0
    assert score["improvement"] == 0
    assert score["loss_before"] == score["loss_final"] > 0


def test_training_on_the_data_shows(pipe):
    data = examples()
    trainer = Trainer(pipe, FinetuneSettings(learning_rate=3e-3, batch_size=4), data, 0)
    score = METRIC.score_pipeline(
        subject(pipe, lambda: None, lambda: trainer.train_to(40), data)
    ).metrics
    assert score["share"] > 0.8
    assert score["improvement"] == pytest.approx(1 - score["loss_final"] / score["loss_before"])
    assert score["improvement"] > 0


def test_ruined_weights_have_lost_what_they_knew(pipe):
    data = examples()
    trainer = Trainer(pipe, FinetuneSettings(learning_rate=3e-3, batch_size=4), data, 0)
    trainer.train_to(40)

    def ruin():
        with torch.no_grad():
            pipe.unet.conv_out.weight.normal_(generator=torch.Generator().manual_seed(0))

    score = METRIC.score_pipeline(subject(pipe, lambda: None, ruin, data)).metrics
    assert score["share"] < 0.2
    assert score["improvement"] < 0


def test_a_model_that_was_not_fine_tuned_is_refused(pipe):
    with pytest.raises(ResurgeError, match="fine-tuned"):
        METRIC.score_pipeline(subject(pipe, lambda: None, lambda: None, None))
