import numpy as np
import pytest

from orchestrator.core.artifacts import Probe
from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.interfaces.metric import Picture
from workers.metrics.concept_accuracy import ConceptAccuracy
from workers.shapes.render import random_scene, render

METRIC = ConceptAccuracy(ConceptAccuracy.Settings())
EACH = 20


def pictures(role, concept, **shown):
    rng = np.random.default_rng(0)
    probe = Probe(role, concept, f"a {concept}")
    return [Picture(probe, 0, i, render(random_scene(rng, **shown))) for i in range(EACH)]


def test_pictures_of_the_concept_score_1_and_others_0():
    score = METRIC.score_images(
        [
            *pictures("erased", "star", shape="heart"),
            *pictures("retained", "circle", shape="circle"),
            *pictures("retained", "cross", shape="square"),
            *pictures("never_known", "bolt", shape="bolt"),
        ]
    )
    assert score.metrics["erased"] == pytest.approx(0, abs=0.1)
    assert score.metrics["retained.circle"] == pytest.approx(1, abs=0.1)
    assert score.metrics["retained.cross"] == pytest.approx(0, abs=0.1)
    assert score.metrics["retained"] == pytest.approx(0.5, abs=0.1)
    assert score.metrics["never_known"] == pytest.approx(1, abs=0.1)
    assert len(score.values) == 4 * EACH
    assert sum(score.values[:EACH]) / EACH == score.metrics["erased"]


@pytest.mark.parametrize(
    ("concept", "shown"), [("red", {"color": "red"}), ("striped", {"fill": "striped"})]
)
def test_colors_and_fills_are_judged_by_their_own_heads(concept, shown):
    score = METRIC.score_images(pictures("erased", concept, **shown))
    assert score.metrics["erased"] == pytest.approx(1, abs=0.1)


def test_an_empty_picture_shows_nothing():
    blank = np.full((32, 32, 3), 220, dtype=np.uint8)
    probes = [Probe("retained", word, word) for word in ("red", "green", "blue", "yellow")]
    score = METRIC.score_images([Picture(probe, 0, 0, blank) for probe in probes])
    assert score.metrics["retained"] == 0


def test_a_word_that_the_judge_does_not_know():
    with pytest.raises(ResurgeError, match="does not know 'cat'"):
        METRIC.score_images(pictures("erased", "cat")[:1])


def test_it_is_for_the_shapes_base():
    assert METRIC.problems(Shapes(Shapes.Settings()), "star") == []
    other = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert "base 'shapes' only" in METRIC.problems(other, "star")[0]


def test_the_judge_knows_every_concept_of_the_shapes_base():
    """So that planning need not ask it."""
    base = Shapes(Shapes.Settings())
    for concept in (*base.concepts(), base.never_known()):
        assert METRIC.score_images(pictures("retained", concept)[:1]).values


def test_the_judge_is_part_of_the_identity():
    assert len(METRIC.fingerprint()) == 64
