import subprocess
import sys

import pytest

from workers.shapes.vocabulary import (
    ALL_SHAPES,
    COLORS,
    FILLS,
    MENTIONS,
    RGB,
    WORDS,
    caption,
    mentioned,
)


def test_mentions_are_every_combination_of_attributes():
    star = ("star", "red", "striped")
    assert sorted(caption(*mentioned(star, mention)) for mention in MENTIONS) == sorted(
        [
            "a star",
            "a red star",
            "a striped star",
            "a striped red star",
            "a shape",
            "a red shape",
            "a striped shape",
            "a striped red shape",
        ]
    )


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (("arrow",), "an arrow"),
        (("arrow", "red"), "a red arrow"),
        (("star", "orange"), "an orange star"),
        (("star", "red", "outlined"), "an outlined red star"),
        ((), "a shape"),
    ],
)
def test_article_follows_english(attributes, text):
    assert caption(*attributes) == text


def test_article_can_be_given():
    assert caption("arrow", article="a") == "a arrow"


def test_words_are_distinct_and_cover_every_attribute():
    assert len(set(WORDS)) == len(WORDS)
    assert {*ALL_SHAPES, *COLORS, *FILLS, "shape", "a", "an"} <= set(WORDS)


def test_every_color_has_its_own_rgb():
    assert set(RGB) == set(COLORS)
    assert len(set(RGB.values())) == len(COLORS)


def test_vocabulary_loads_no_heavy_library():
    code = (
        "import sys, workers.shapes.vocabulary;"
        "print([name for name in ('numpy', 'torch', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
