import pytest
import torch

from workers.diffusion.text import embed, last_subject_index
from workers.shapes.making.tokenizer import build_tokenizer


def padded_with_exclamation_marks():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "!"
    return tokenizer


@pytest.mark.parametrize("make", [build_tokenizer, padded_with_exclamation_marks])
@pytest.mark.parametrize(
    ("prompt", "concept", "index"),
    [
        ("", None, 0),
        ("a star", None, 2),
        ("a red star", "star", 3),
        ("a red circle", "red", 2),
        ("a red circle", "a red", 2),
        ("a red circle", "star", 3),
        ("a striped red star", None, 4),
    ],
)
def test_last_subject_token_whatever_the_padding(make, prompt, concept, index):
    assert last_subject_index(make(), prompt, concept) == index


def test_embeddings_are_the_pipelines_own_in_the_order_asked(pipe):
    prompts = ["a star", "a circle", "a star", ""]
    expected = pipe.encode_prompt(prompts, pipe.device, 1, False)[0]
    got = embed(pipe, prompts)
    torch.testing.assert_close(got, expected)
    assert torch.equal(got[0], got[2])
