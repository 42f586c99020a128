import math

import pytest
from pydantic import ValidationError

from orchestrator.core.plugin import Asked
from tests.workers.metrics.tiny_models import noise_images, pictures_of, save_classifier, save_clip
from workers.bases.shapes import Shapes
from workers.data.pinned import Source
from workers.judging.classes import load_classifier
from workers.metrics.classifier import Classifier
from workers.metrics.clip_score import ClipScore
from workers.metrics.revived import Revived

BASE = Shapes(Shapes.Settings())
CLASSES = ("cat", "dog", "horse", "bird")


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    clip = save_clip(tmp_path_factory.mktemp("clip"))
    classes = save_classifier(tmp_path_factory.mktemp("classes"), CLASSES)
    return {"clip_score": {"model": str(clip), "scale": 1}}, {"classifier": {"model": str(classes)}}


def metric(*conditions):
    all_of = [{"judge": judge, "above": above} for judge, above in conditions]
    return Revived(Revived.Settings(all_of=all_of))


def alone(judge, pictures):
    ((name, settings),) = judge.items()
    cls = {"clip_score": ClipScore, "classifier": Classifier}[name]
    return cls(cls.Settings(**settings)).score_images(pictures).values


def test_a_picture_counts_where_every_judge_says_so(judges):
    images = noise_images(20)
    model = load_classifier(Source(judges[1]["classifier"]["model"]))
    seen = model.names[model.probabilities(images).mean(dim=0).argmax()]
    other = next(name for name in CLASSES if name != seen)
    pictures = [*pictures_of(images, concept=seen), *pictures_of(images, "retained", other)]
    cosines, hits = (alone(judge, pictures) for judge in judges)
    middle = sorted(cosines[:20])[10]
    expected = [float(c > middle and h > 0.5) for c, h in zip(cosines, hits, strict=True)]
    score = metric((judges[0], middle), (judges[1], 0.5)).score_images(pictures)
    assert score.values == expected and 0 < sum(expected) < sum(hits)
    assert score.metrics["erased"] == sum(expected[:20]) / 20
    assert score.metrics[f"retained.{other}"] == sum(expected[20:]) / 20
    passed = sum(c > middle for c in cosines[:20]) / 20
    assert score.metrics["clip_score.erased"] == passed
    assert score.metrics["classifier.erased"] == sum(hits[:20]) / 20


def test_what_a_judge_says_nothing_of_has_no_value(judges):
    pictures = [
        *pictures_of(noise_images(1), concept="cat"),
        *pictures_of(noise_images(1), "never_known", "a zorblax"),
    ]
    revived = metric((judges[0], -1.0), (judges[1], 0.5))
    assert math.isnan(revived.score_images(pictures).values[1])
    assert revived.roles(Asked((), {"erased": 4, "never_known": 2})) == {"erased"}


def test_it_speaks_for_its_judges(judges):
    revived = metric((judges[0], 0.31), (judges[1], 0.3))
    assert "clip_score > 0.31" in revived.judged_by() and "classifier > 0.3" in revived.judged_by()
    assert revived.problems(BASE, "cat") == []
    assert "no class for 'zebra'" in revived.problems(BASE, "zebra")[0]
    assert "no class for 'zebra'" in revived.problems_with(Asked(("zebra",), {}))[0]
    with pytest.raises(Exception, match="no class for 'zebra'"):
        revived.look_ahead(["cat"], ["zebra"])
    other = metric((judges[0], 0.31))
    assert revived.fingerprint() != other.fingerprint()
    assert metric((judges[0], 0.3)).settings.identity() != other.settings.identity()
    assert metric((judges[0], 0.3)).fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("all_of", "said"),
    [
        ([], "at least 1"),
        ([{"judge": "fid", "above": 1}], "metric of single pictures"),
        ([{"judge": "clip_score"}], "above"),
        ([{"judge": "clip_scor", "above": 1}], "did you mean 'clip_score'"),
    ],
)
def test_conditions_are_judges_with_thresholds(all_of, said):
    with pytest.raises(ValidationError, match=said):
        Revived.Settings(all_of=all_of)
