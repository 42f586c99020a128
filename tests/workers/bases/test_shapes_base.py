import pytest

from orchestrator.core.errors import ResurgeError
from workers.bases.shapes import Shapes
from workers.shapes.vocabulary import SHAPES, WORDS

BASE = Shapes(Shapes.Settings())


def test_prompts_of_a_shape():
    prompts = BASE.prompts("star")
    assert prompts[0] == "a star"
    assert "a red star" in prompts
    assert "an outlined star" in prompts
    assert len(set(prompts)) == 10


def test_prompts_of_a_color_and_of_a_fill():
    assert BASE.prompts("red")[:2] == ("a red shape", "a red circle")
    assert "a striped star" in BASE.prompts("striped")


@pytest.mark.parametrize("concept", [*BASE.concepts(), BASE.never_known()])
def test_every_prompt_names_its_concept_in_known_words(concept):
    for prompt in BASE.prompts(concept):
        words = prompt.split()
        assert concept in words
        assert set(words) <= set(WORDS)


def test_retained_are_the_others_of_the_kind():
    assert set(BASE.retained("star")) == set(SHAPES) - {"star"}
    assert BASE.retained("solid") == ("striped", "outlined")


def test_a_novel_shape_can_be_asked_for_but_is_no_concept_of_the_base():
    assert BASE.never_known() not in BASE.concepts()
    assert BASE.prompts("bolt")[0] == "a bolt"


def test_an_unknown_concept():
    with pytest.raises(ResurgeError, match="did you mean 'star'"):
        BASE.prompts("starr")
