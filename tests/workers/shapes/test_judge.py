import pytest
import torch

from workers.shapes.judge import CLASSES, NONE, WEIGHTS, Judge
from workers.shapes.making.architecture import load_pipeline
from workers.shapes.making.card import measure_judge
from workers.shapes.making.data import draw_pictures, to_unit
from workers.shapes.making.train_judge import shapeless
from workers.shapes.vocabulary import ALL_SHAPES


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_each_head_is_right_on_held_out_pictures(judge):
    vae = load_pipeline(WEIGHTS / "pipeline").vae
    for view, accuracies in measure_judge(judge, vae, count=600).items():
        assert min(accuracies.values()) >= 0.99, (view, accuracies)


def test_probabilities_sum_to_one_for_each_head(judge):
    probabilities = judge.probabilities(torch.rand(4, 3, 32, 32))
    assert {head: values.shape for head, values in probabilities.items()} == {
        head: (4, len(words)) for head, words in CLASSES.items()
    }
    for values in probabilities.values():
        assert torch.allclose(values.sum(1), torch.ones(4))


def test_the_probability_of_a_word_agrees_with_its_name(judge):
    images = to_unit(draw_pictures(10, 5, ALL_SHAPES).images)
    assert judge.names(images)["shape"] == list(ALL_SHAPES)
    circle = judge.classes["shape"].index("circle")
    assert judge.probabilities(images)["shape"][0, circle] > 0.9


def test_larger_images_are_shrunk(judge):
    images = to_unit(draw_pictures(10, 5, ALL_SHAPES).images)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert judge.names(larger) == judge.names(images)


def test_pictures_without_a_shape_are_named_none(judge):
    generator = torch.Generator().manual_seed(7)
    pictures = draw_pictures(200, 7, ALL_SHAPES)
    spoiled = shapeless(to_unit(pictures.images), pictures.labels, generator)
    named = judge.names(spoiled)["shape"]
    assert named.count(NONE) / len(named) >= 0.95


def test_saving_and_loading_keeps_the_verdict(judge, tmp_path):
    judge.save(tmp_path)
    images = torch.rand(8, 3, 32, 32)
    again = Judge.load(tmp_path).probabilities(images)
    for head, values in judge.probabilities(images).items():
        assert torch.equal(values, again[head])
