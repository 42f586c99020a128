import string

import pytest
from transformers import CLIPTokenizer

from workers.shapes.making.tokenizer import MAX_TOKENS, build_tokenizer
from workers.shapes.vocabulary import WORDS

TEXTS = ["", "a striped red star", "An ARROW", "digit zero", "Hello, World! 42", "x" * 100, "né ü"]


@pytest.fixture(scope="module")
def built() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def reloaded(built, tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def padded(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, padding="max_length", truncation=True).input_ids


@pytest.mark.parametrize("word", WORDS)
def test_each_word_is_one_token(reloaded, word):
    start, token, end = reloaded(word).input_ids
    assert (start, end) == (reloaded.bos_token_id, reloaded.eos_token_id)
    assert reloaded.decode([token]) == word


@pytest.mark.parametrize("text", TEXTS)
def test_reloading_keeps_the_ids(built, reloaded, text):
    assert padded(built, text) == padded(reloaded, text)
    assert len(padded(reloaded, text)) == MAX_TOKENS


def test_prompts_are_padded_with_the_end_token(reloaded):
    ids = padded(reloaded, "a star")
    assert ids[3:] == [reloaded.eos_token_id] * (MAX_TOKENS - 3)


def test_any_ascii_text_has_tokens_and_no_unknown_ones(reloaded):
    for character in string.printable.strip():
        _, *tokens, _ = reloaded(character).input_ids
        assert tokens, character
        assert reloaded.unk_token_id not in tokens, character


def test_bundled_tokenizer_is_the_built_one(built):
    from workers.shapes.judge import WEIGHTS

    bundled = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    assert bundled.get_vocab() == built.get_vocab()
    assert all(padded(bundled, text) == padded(built, text) for text in TEXTS)
