import pytest
import torch

from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.editing.gates import PromptGates


@pytest.fixture
def gates(pipe):
    """Gates of prompts about a red star, as the text encoder's hook gathers them."""
    memory = PromptGates(pipe, "red star")
    memory.watch(pipe)

    def of(prompts):
        return memory.gates(embed(pipe, prompts))

    return of


def test_the_concepts_own_prompt_opens_the_gate(gates):
    assert gates(["red star"]).item() == pytest.approx(1, abs=1e-5)


def test_a_prompt_with_all_of_the_concepts_words_opens_the_gate(gates):
    assert gates(["a star that is red"]).item() == pytest.approx(1)


def test_elsewhere_the_gate_is_the_larger_of_the_whole_texts_cosine_and_overlap(pipe, gates):
    prompts = ["a red circle", "a blue circle"]
    text, concept = embed(pipe, prompts).flatten(1), embed(pipe, ["red star"]).flatten(1)
    cosines = torch.cosine_similarity(text, concept).tolist()
    expected = [max(cosines[0], 0.5), max(cosines[1], 0.0)]
    assert gates(prompts).tolist() == pytest.approx(expected, abs=1e-5)


def test_text_that_was_never_encoded_is_not_held_back(pipe):
    memory, unknown = PromptGates(pipe, "star"), normal((2, 16, 64), 0, 0, "unknown")
    assert memory.gates(unknown).tolist() == [1.0, 1.0]
    memory.watch(pipe)
    known = embed(pipe, ["a blue circle"])
    assert memory.gates(torch.cat([unknown, known]))[:2].tolist() == [1.0, 1.0]
    assert memory.gates(known).item() < 1


def test_every_row_of_a_batch_has_its_own_gate(gates):
    alone = [gates([prompt]).item() for prompt in ("red star", "a blue circle", "")]
    together = gates(["", "red star", "a blue circle", "red star"])
    star, circle, empty = alone
    assert together.tolist() == pytest.approx([empty, star, circle, star], abs=1e-5)
    assert circle < star


def test_a_text_encoder_in_training_is_followed(pipe, gates):
    """A prompt keeps its gate's overlap when its embedding has moved."""
    before = gates(["a red circle"]).item()
    with torch.no_grad():
        for value in pipe.text_encoder.parameters():
            value.add_(0.1 * normal(value.shape, 0, 0, "moved"))
    assert gates(["a red circle"]).item() != pytest.approx(1, abs=1e-3)
    assert gates(["a star that is red"]).item() == pytest.approx(1)
    assert before < 1
