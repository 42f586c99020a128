import math

import pytest
import torch
from PIL import Image
from transformers import ConvNextImageProcessorPil, ResNetForImageClassification

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from tests.workers.metrics.tiny_models import noise_images, pictures_of, save_classifier
from workers.bases.shapes import Shapes
from workers.metrics.classifier import Classifier

NAMES = ("tench, Tinca tinca", "golf ball", "church", "Siamese cat", "tabby", "parachute", "truck")
IMAGES = noise_images(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"), NAMES)


@pytest.fixture(scope="module")
def ranked(folder):
    """Names from most to least probable for each picture, by transformers' own forward."""
    model = ResNetForImageClassification.from_pretrained(folder).eval()
    pixels = ConvNextImageProcessorPil.from_pretrained(folder)(
        [Image.fromarray(image) for image in IMAGES], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        orders = model(pixels).logits.argsort(dim=1, descending=True).tolist()
    return [[NAMES[index] for index in order] for order in orders]


def metric(folder, **settings):
    return Classifier(Classifier.Settings(model=str(folder), **settings))


@pytest.mark.parametrize("name", NAMES)
def test_top1_and_top5(folder, ranked, name):
    concept = name.partition(",")[0].upper()
    score = metric(folder).score_images(pictures_of(IMAGES, concept=concept))
    assert score.values == [float(row[0] == name) for row in ranked]
    top5 = sum(name in row[:5] for row in ranked) / len(ranked)
    assert score.metrics["top5.erased"] == pytest.approx(top5)


def test_a_class_has_each_of_its_names(folder):
    concepts = ("tench", "tinca tinca", "Tinca_Tinca")
    found = [
        metric(folder).score_images(pictures_of(IMAGES, concept=concept)).metrics["top5.erased"]
        for concept in concepts
    ]
    assert len(set(found)) == 1


def test_labels_say_which_classes_a_concept_is(folder, ranked):
    labels = {"pet": NAMES[:4]}
    score = metric(folder, labels=labels).score_images(pictures_of(IMAGES, concept="pet"))
    assert score.values == [float(row[0] in NAMES[:4]) for row in ranked]


def test_concepts_without_a_class_are_named(folder):
    base = Shapes(Shapes.Settings())
    assert "no class for 'star'" in metric(folder).problems(base, "star")[0]
    assert metric(folder).problems(base, "church") == []
    [problem] = metric(folder).problems_with(Asked(("dog", "truck", "car"), {}))
    assert "metric 'classifier': the model has no class for 'dog', 'car'" in problem
    assert metric(folder, labels={"dog": ["truck"]}).problems_with(Asked(("dog",), {})) == []
    pictures = [*pictures_of(IMAGES, concept="dog"), *pictures_of(IMAGES, "retained", "trucks")]
    with pytest.raises(ResurgeError, match="no class for 'dog', 'trucks'"):
        metric(folder).score_images(pictures)


def test_a_repository_is_not_asked_when_planning():
    far = Classifier(Classifier.Settings())
    assert far.problems(Shapes(Shapes.Settings()), "star") == []
    assert far.problems_with(Asked(("star",), {})) == []


def test_what_was_never_known_has_no_value(folder):
    pictures = [*pictures_of(IMAGES, concept="truck"), *pictures_of(IMAGES, "never_known", "zork")]
    score = metric(folder).score_images(pictures)
    assert all(math.isnan(value) for value in score.values[len(IMAGES) :])
    assert "never_known" not in score.metrics
