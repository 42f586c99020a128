import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.sampling import sample_floats
from workers.diffusion.text import embed, last_subject_index, refuse_cut
from workers.recipes import SampleSettings
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


def test_a_prompt_that_would_be_cut_is_refused_and_one_that_just_fits_is_not(pipe):
    most = pipe.tokenizer.model_max_length
    fits = " ".join(["red"] * (most - 3) + ["star"])
    refuse_cut(pipe.tokenizer, [fits])
    with pytest.raises(ResurgeError) as error:
        refuse_cut(pipe.tokenizer, ["a star", f"red {fits}"])
    said = f"has {most + 1} tokens but the model reads {most}: 'star' would be cut off"
    assert said in str(error.value)
    settings = SampleSettings(guidance=1.0, sampler_steps=1, images_per_prompt=1)
    with pytest.raises(ResurgeError, match="would be cut off"):
        sample_floats(pipe, [f"red {fits}"], settings)
