import numpy as np
import pytest

from orchestrator.core.concepts import ConceptSet
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.datasets.erased import Erased
from workers.datasets.novel import Novel
from workers.datasets.related import Related
from workers.datasets.same_color import SameColor
from workers.datasets.same_fill import SameFill
from workers.datasets.unrelated import Unrelated
from workers.shapes.vocabulary import COLORS, FILLS, NOVEL_SHAPES, SHAPES

DATASETS = [Related, Unrelated, SameColor, SameFill, Novel]
SHAPES_BASE = Shapes(Shapes.Settings())


def make(cls, **settings):
    return cls(cls.Settings(**settings))


def scenes(dataset, concept, count=200):
    rng = np.random.default_rng(3)
    return [dataset.scene((concept,), rng) for _ in range(count)]


@pytest.mark.parametrize("cls", DATASETS)
@pytest.mark.parametrize("concept", SHAPES + COLORS + FILLS)
def test_neither_scene_nor_caption_ever_has_the_concept(cls, concept):
    dataset = make(cls)
    if dataset.problems(SHAPES_BASE, concept):
        return
    for scene, caption in scenes(dataset, concept):
        assert concept not in (scene.shape, scene.color, scene.fill)
        assert concept not in caption.split()


@pytest.mark.parametrize("cls", DATASETS)
def test_captions_are_true_of_their_pictures(cls):
    for scene, caption in scenes(make(cls), "star"):
        said = set(caption.split()) - {"a", "an"}
        assert said <= {scene.shape, scene.color, scene.fill}
        assert scene.shape in said


@pytest.mark.parametrize("cls", DATASETS)
def test_the_same_settings_give_the_same_examples(cls):
    first, again = (make(cls, size=5).examples("star", 32) for _ in range(2))
    other = make(cls, size=5, seed=1).examples("star", 32)
    assert first.images.shape == (5, 32, 32, 3)
    assert first.images.dtype == np.uint8
    assert np.array_equal(first.images, again.images)
    assert first.captions == again.captions
    assert not np.array_equal(first.images, other.images)


def test_related_draws_all_other_words_of_the_kind():
    assert {s.shape for s, _ in scenes(make(Related), "star")} == set(SHAPES) - {"star"}
    assert {s.color for s, _ in scenes(make(Related), "red")} == set(COLORS) - {"red"}
    assert {s.fill for s, _ in scenes(make(Related), "solid")} == set(FILLS) - {"solid"}


@pytest.mark.parametrize(
    ("concept", "expected"), [("star", {"circle", "square"}), ("circle", {"square", "heart"})]
)
def test_unrelated_draws_two_plain_shapes(concept, expected):
    assert {s.shape for s, _ in scenes(make(Unrelated), concept)} == expected


def test_same_color_has_one_color_and_always_names_it():
    for scene, caption in scenes(make(SameColor, color="blue"), "star"):
        assert scene.color == "blue"
        assert "blue" in caption.split()


def test_same_fill_has_one_fill_and_always_names_it():
    for scene, caption in scenes(make(SameFill, fill="striped"), "star"):
        assert scene.fill == "striped"
        assert "striped" in caption.split()


@pytest.mark.parametrize("shape", NOVEL_SHAPES)
def test_novel_shows_and_names_a_shape_that_the_base_never_saw(shape):
    for scene, caption in scenes(make(Novel, shape=shape), "red"):
        assert scene.shape == shape
        assert shape in caption.split()


def test_novel_leaves_the_shape_of_the_control_alone_unless_told():
    assert {s.shape for s, _ in scenes(make(Novel), "star")}.isdisjoint({SHAPES_BASE.never_known()})


@pytest.mark.parametrize("concept", ["star", "red", "striped"])
def test_erased_shows_and_names_nothing_else(concept):
    for scene, caption in scenes(make(Erased), concept, 50):
        assert concept in (scene.shape, scene.color, scene.fill)
        assert concept in caption.split()


@pytest.mark.parametrize("cls", DATASETS)
@pytest.mark.parametrize("concepts", [("star", "circle", "square", "heart"), ("star", "blue")])
def test_neither_scene_nor_caption_has_any_of_several_concepts(cls, concepts):
    rng, dataset = np.random.default_rng(3), make(cls)
    for _ in range(100):
        scene, caption = dataset.scene(concepts, rng)
        shown = {scene.shape, scene.color, scene.fill, *caption.split()}
        assert shown.isdisjoint(concepts)
        assert scene.shape in caption.split()


def test_unrelated_draws_two_shapes_where_the_plain_ones_are_erased():
    concepts = ("circle", "square", "heart")
    rng = np.random.default_rng(3)
    drawn = {make(Unrelated).scene(concepts, rng)[0].shape for _ in range(50)}
    assert drawn == {"triangle", "star"}


def test_erased_shows_every_concept_of_a_set():
    rng = np.random.default_rng(3)
    drawn = [make(Erased).scene(("star", "heart", "red"), rng)[0] for _ in range(50)]
    assert {s.shape for s in drawn} == {"star", "heart"}
    assert {s.color for s in drawn} == {"red"}


def test_a_set_must_leave_something_to_draw():
    everything = ConceptSet("all", SHAPES)
    [found] = make(Related).problems_of(SHAPES_BASE, everything)
    assert found == "dataset 'related' has no shape left without 'all'"


def test_a_color_cannot_be_avoided_when_it_is_the_only_one():
    problems = make(SameColor, color="red").problems(SHAPES_BASE, "red")
    assert problems == ["dataset 'same_color' has no color left without 'red'"]
    problems = make(SameFill, fill="solid").problems(SHAPES_BASE, "solid")
    assert problems == ["dataset 'same_fill' has no fill left without 'solid'"]


@pytest.mark.parametrize("cls", DATASETS)
def test_other_bases_and_other_words_are_refused(cls):
    base = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert "needs base 'shapes'" in make(cls).problems(base, "star")[0]
    assert "'bolt'" in make(cls).problems(SHAPES_BASE, "bolt")[0]
    assert make(cls).problems(SHAPES_BASE, "star") == []
