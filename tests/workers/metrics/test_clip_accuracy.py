import math

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from tests.workers.metrics.tiny_models import noise_images, pictures_of
from workers.bases.shapes import Shapes
from workers.metrics.clip_accuracy import ClipAccuracy

CLASSES = ("star", "heart", "circle")
IMAGES = noise_images(6)


@pytest.fixture
def expected(clip_folder):
    """Probabilities (images, classes) by transformers' own forward."""
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        [f"a photo of a {word}" for word in CLASSES], padding=True, return_tensors="pt"
    )
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(
        [Image.fromarray(image) for image in IMAGES], return_tensors="pt"
    )
    with torch.no_grad():
        return model(**tokens, pixel_values=pixels.pixel_values).logits_per_image.softmax(dim=1)


def metric(folder, **settings):
    return ClipAccuracy(
        ClipAccuracy.Settings(**{"classes": CLASSES, "model": str(folder), **settings})
    )


@pytest.mark.parametrize("concept", CLASSES)
def test_top1_is_the_value_and_the_probability_beside_it(clip_folder, expected, concept):
    score = metric(clip_folder).score_images(pictures_of(IMAGES, concept=concept))
    column = CLASSES.index(concept)
    assert score.values == (expected.argmax(dim=1) == column).double().tolist()
    mean = float(expected[:, column].mean())
    assert score.metrics["probability.erased"] == pytest.approx(mean, abs=1e-5)
    assert "top1.erased" not in score.metrics


def test_the_probability_may_be_the_value(clip_folder, expected):
    score = metric(clip_folder, value="probability").score_images(pictures_of(IMAGES))
    assert score.values == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    share = float((expected.argmax(dim=1) == 0).double().mean())
    assert score.metrics["top1.erased"] == pytest.approx(share)


def test_a_concept_that_is_no_class(clip_folder):
    base = Shapes(Shapes.Settings())
    assert metric(clip_folder).problems(base, "star") == []
    assert "no class 'cross'" in metric(clip_folder).problems(base, "cross")[0]
    found = metric(clip_folder).problems_with(Asked(("heart", "cross", "arrow"), {}))
    assert ["'cross'" in found[0], "'arrow'" in found[1], len(found)] == [True, True, 2]
    with pytest.raises(ResurgeError, match="no class 'cross'; add it to classes"):
        metric(clip_folder).score_images(pictures_of(IMAGES, "retained", "cross"))


def test_what_was_never_known_has_no_value(clip_folder):
    pictures = [*pictures_of(IMAGES), *pictures_of(IMAGES, "never_known", "a zorblax")]
    score = metric(clip_folder).score_images(pictures)
    assert all(math.isnan(value) for value in score.values[6:])
    assert "never_known" not in score.metrics


@pytest.mark.parametrize("classes", [("star",), ("star", "star")])
def test_classes_are_a_choice(clip_folder, classes):
    with pytest.raises(ValidationError, match="two or more, each once"):
        metric(clip_folder, classes=classes)


def test_a_template_has_one_place(clip_folder):
    with pytest.raises(ValidationError, match="exactly once"):
        metric(clip_folder, template="a photo")
