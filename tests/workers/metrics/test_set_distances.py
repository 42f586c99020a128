import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from tests.workers.metrics.tiny_models import noise_images, pictures_of
from tests.workers.metrics.worlds import noisy, rendered
from workers.data.pinned import Source
from workers.judging.distances import rbf_distance
from workers.judging.features import embedded
from workers.metrics.cmmd import Cmmd
from workers.metrics.fid import Fid
from workers.metrics.kid import Kid

EACH = 40
HEARTS = rendered(EACH, shape="heart")


def judged(metric):
    return metric(metric.Settings(features="judge"))


def distance(metric, ours, theirs):
    pictures, reference = (pictures_of(some, "retained", "heart") for some in (ours, theirs))
    return metric.score_images(pictures, reference).metrics["distance"]


@pytest.mark.parametrize("metric", [Fid, Kid, Cmmd])
def test_noise_takes_pictures_away_from_the_base(metric):
    found = [distance(judged(metric), noisy(HEARTS, amount), HEARTS) for amount in (0, 20, 60, 120)]
    assert found == sorted(found)
    assert found[-1] > 2 * abs(found[1])


@pytest.mark.parametrize("metric", [Fid, Kid, Cmmd])
def test_other_shapes_are_farther_than_other_pictures_of_the_same(metric):
    again = distance(judged(metric), rendered(EACH, seed=1, shape="heart"), HEARTS)
    other = distance(judged(metric), rendered(EACH, seed=1, shape="cross"), HEARTS)
    assert other > 2 * abs(again)


def test_the_base_is_at_0():
    assert distance(judged(Fid), HEARTS, HEARTS) == pytest.approx(0, abs=1e-6)


def test_only_the_chosen_roles_are_compared_and_counted():
    kept, erased = HEARTS[:12], noisy(HEARTS[:8], 100)
    pictures = [*pictures_of(kept, "retained", "heart"), *pictures_of(erased)]
    reference = [*pictures_of(kept, "retained", "heart"), *pictures_of(HEARTS[:8])]
    score = judged(Fid).score_images(pictures, reference)
    told = {"distance": 0, "n": 12, "dimensions": 64, "distance.retained": 0, "n.retained": 12}
    assert score.metrics == pytest.approx(told, abs=1e-6)
    both = Fid(Fid.Settings(roles=("erased", "retained"))).score_images(pictures, reference)
    assert both.metrics["n"] == 20
    assert both.metrics["distance"] > 0


@pytest.mark.parametrize("metric", [Fid, Kid, Cmmd])
def test_what_should_survive_is_compared_together_and_by_role(metric):
    """What is not erased, as it is asked for: near and not near, and one of a role alone."""

    def asked(near, far):
        return [
            *pictures_of(HEARTS[:4]),
            *pictures_of(near, "related", "heart"),
            *pictures_of(far, "other", "cross"),
            *pictures_of(HEARTS[:1], "retained", "heart"),
            *pictures_of(HEARTS[:4], "synonym", "star"),
        ]

    near, far = HEARTS[:12], rendered(EACH, shape="cross")
    score = judged(metric).score_images(asked(near, noisy(far, 60)), asked(near, far)).metrics
    assert next(iter(score)) == "distance"
    assert score["n"] == 12 + EACH + 1
    assert (score["n.related"], score["n.other"], "n.retained" in score) == (12, EACH, False)
    assert score["distance.other"] == pytest.approx(distance(judged(metric), noisy(far, 60), far))
    assert score["distance.related"] < score["distance"] < score["distance.other"]


def test_one_picture_is_no_set():
    with pytest.raises(ResurgeError, match="2 or more retained, other, related pictures but got 1"):
        distance(judged(Kid), HEARTS[:1], HEARTS[:1])


@pytest.mark.parametrize("metric", [Fid, Kid, Cmmd])
def test_too_few_pictures_are_known_before_they_are_drawn(metric):
    pictures = {"erased": 8, "retained": 1, "never_known": 2}
    asked = Asked(("heart",), pictures)
    said = judged(metric).problems_with(asked)
    assert "2 or more retained, other, related pictures but got 1" in said[0]
    both = metric(metric.Settings(features="judge", roles=("erased", "retained")))
    assert both.problems_with(asked) == []
    assert judged(metric).problems_with(Asked((), {"erased": 8})) != []
    assert judged(metric).problems_with(Asked((), {"retained": 2})) == []
    assert judged(metric).problems_with(Asked((), {"other": 1, "related": 1})) == []


def test_clip_embeddings(clip_folder):
    metric = Cmmd(Cmmd.Settings(features=str(clip_folder), sigma=0.5, scale=10))
    ours, theirs = noise_images(5), noise_images(5, seed=1)
    source = Source(str(clip_folder))
    expected = 10 * rbf_distance(embedded(source, ours), embedded(source, theirs), 0.5)
    assert distance(metric, ours, theirs) == pytest.approx(expected, rel=1e-5)
