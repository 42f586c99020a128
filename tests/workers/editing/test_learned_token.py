"""A learned token is a word of its own: the model beside it stays what it was."""

import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.soft_prompt import encode, new_soft
from workers.diffusion.text import embed, token_ids
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.learned_token import LearnedToken, knows, reading

PROMPTS = ["a star", "a <mug>", "<mug> and <cup>"]


def other(pipe, token="<mug>"):
    begun = LearnedToken.beginning(pipe, token, "circle")
    return LearnedToken(token, begun.value + 0.1)


def test_it_begins_as_a_word_bit_for_bit(pipe):
    word, plain = embed(pipe, ["a circle", "a star"])
    with reading(pipe, {"<mug>": "circle"}):
        assert torch.equal(embed(pipe, ["a <mug>", "a star"])[0], word)
        assert torch.equal(embed(pipe, ["a <mug>", "a star"])[1], plain)
        assert knows(pipe, "<mug>")
    assert not knows(pipe, "<mug>")


def test_it_is_undone_bit_for_bit(pipe):
    before, tokenizer = embed(pipe, PROMPTS), pipe.tokenizer
    undo = other(pipe).apply(pipe)
    second = LearnedToken("<cup>", other(pipe, "<cup>").value * 2).apply(pipe)
    learned = embed(pipe, PROMPTS)
    assert torch.equal(learned[0], before[0])
    assert not torch.allclose(learned[1], before[1], atol=1e-3)
    second()
    assert not torch.allclose(embed(pipe, PROMPTS)[2], learned[2], atol=1e-3)
    undo()
    assert pipe.tokenizer is tokenizer
    assert torch.equal(embed(pipe, PROMPTS), before)


def test_it_is_stored_with_its_token(pipe, tmp_path):
    path = tmp_path / "edits.safetensors"
    save_edits(path, [other(pipe)])
    [again] = load_edits(path)
    assert again.token == "<mug>"
    assert torch.equal(again.value, other(pipe).value)


def test_a_model_that_has_learned_it_reads_what_it_learned(pipe):
    other(pipe).apply(pipe)
    learned = embed(pipe, ["a <mug>"])
    with reading(pipe, {"<mug>": "circle"}):
        assert torch.equal(embed(pipe, ["a <mug>"]), learned)


def test_an_attack_puts_its_own_words_beside_it(pipe):
    other(pipe).apply(pipe)
    ids = token_ids(pipe, ["star <mug>"])
    soft = new_soft(pipe, 1, 1, 0, 0, "soft")
    table = pipe.text_encoder.get_input_embeddings().weight
    same = table[ids[:, 1:2]].detach()
    assert torch.equal(encode(pipe, ids, same), encode(pipe, ids))
    assert not torch.allclose(encode(pipe, ids, soft), encode(pipe, ids), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda pipe: LearnedToken.beginning(pipe, "<mug>", "zebra"), "reads as .* tokens"),
        (lambda pipe: LearnedToken("<mug>", torch.zeros(3)).apply(pipe), "with another base"),
        (lambda pipe: [other(pipe).apply(pipe) for _ in "12"], "knows <mug> already"),
    ],
)
def test_what_cannot_be_is_said(pipe, make, said):
    with pytest.raises(ResurgeError, match=said):
        make(pipe)
