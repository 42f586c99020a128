import numpy as np
import pytest

from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.datasets.mixed import Mixed

BASE = Shapes(Shapes.Settings())


def mixed(**settings):
    return Mixed(Mixed.Settings(**settings))


def harmful(examples):
    return {s for s in examples.sources if s.startswith("erased: ")}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_exact(share):
    examples = mixed(share=share, size=50).examples("star", 32)
    assert len(examples) == len(set(examples.sources)) == 50
    assert len(harmful(examples)) == 50 * share
    for source, caption in zip(examples.sources, examples.captions, strict=True):
        assert ("star" in caption.split()) == source.startswith("erased: ")


def test_a_larger_share_only_replaces_ordinary_pictures():
    few, many = (mixed(share=share, size=50).examples("star", 32) for share in (0.1, 0.5))
    assert harmful(few) < harmful(many)
    assert set(many.sources) - harmful(many) < set(few.sources) - harmful(few)


def test_the_seed_chooses_and_shuffles():
    first, again, other = (mixed(size=20, seed=s).examples("star", 32) for s in (0, 0, 1))
    assert first.sources == again.sources != other.sources
    assert np.array_equal(first.images, again.images)


def test_each_set_must_have_enough():
    small = mixed(of={"related": {"size": 10}}, share=0.5, size=40)
    message = "needs 20 pictures of 'related', which has 10"
    assert message in small.problems(BASE, "star")[0]
    with pytest.raises(ResurgeError, match=message):
        small.examples("star", 32)
    assert mixed(of={"related": {"size": 10}}, share=0.75, size=40).problems(BASE, "star") == []


def test_what_the_sets_say_is_passed_on(tmp_path):
    other = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert len(mixed().problems(other, "star")) == 2
    ordinary = {"folder": {"path": str(tmp_path)}}
    assert "metadata.jsonl" in mixed(of=ordinary).problems(BASE, "star")[0]
    assert len(mixed(of=ordinary, share=1.0).problems(BASE, "star")) == 0


def test_it_depends_on_the_concept_where_one_of_its_sets_does():
    assert mixed().uses_concept
    assert not mixed(of="digits", harmful="digits").uses_concept


def test_the_identity_is_that_of_its_sets():
    assert mixed().fingerprint() == mixed(of={"related": {"size": 256}}).fingerprint()
    assert mixed().fingerprint() != mixed(of={"related": {"size": 300}}).fingerprint()
    assert mixed().settings == mixed(of={"related": {"size": 256}}).settings
