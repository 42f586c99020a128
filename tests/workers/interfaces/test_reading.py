"""Planning tells concepts apart exactly where CLIP's tokenizer does."""

import itertools

import pytest

from workers.interfaces.reading import as_clip_reads, cut_by_clip
from workers.shapes.making.tokenizer import build_tokenizer

TEXTS = (
    "star", "Star", "STAR", " star ", "star\t", "s tar", "stars", "star!", "star !", "star?",
    "a star", "a  star", "a\nstar", "astar", "self-portrait", "self - portrait", "self portrait",
    "1 2", "12", "1980s", "1980 s", "O'Keeffe", "o'keeffe", "o' keeffe", "it's", "its", "it 's",
    "caf\u00e9", "cafe\u0301", "cafe", "stra\u00dfe", "strasse", "a_b", "a b", "a _ b",
    "\u00c9toile", "\u00e9toile", "\u661f", "\u661f \u661f", "\u661f\u661f",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_texts_read_the_same_where_their_token_ids_are_the_same(tokenizer):
    ids = {text: tuple(tokenizer(text).input_ids) for text in TEXTS}
    wrong = [
        (one, other)
        for one, other in itertools.combinations(TEXTS, 2)
        if (ids[one] == ids[other]) != (as_clip_reads(one) == as_clip_reads(other))
    ]
    assert wrong == []


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_has_at_least_as_many_tokens_as_planning_thinks(tokenizer, text):
    count = len(tokenizer(text).input_ids)
    assert cut_by_clip(text, count) == ""
    assert "would be cut off" in cut_by_clip(f"{text} and more", 3)
