"""Textual inversion: one embedding is trained and nothing else, as any fine-tuning is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from workers.diffusion.soft_prompt import encode
from workers.diffusion.text import token_ids
from workers.recipes import FinetuneSettings
from workers.runtime.parts import in_parts
from workers.training.checkpoints import load_tensors, save_tensors
from workers.training.finetune import Trainer

RECIPES = {
    "plain": {},
    "with an average": {"ema_decay": 0.9, "caption_dropout": 0.3, "accumulation": 2},
    "bf16 and checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
}


def recipe(**values):
    own = {"adapter": "textual_inversion", "placeholder": "<mug>", "initializer": "circle"}
    base = {**own, "caption": "a <mug>", "learning_rate": 5e-3, "batch_size": 4}
    return FinetuneSettings(**(base | values))


def value_of(trainer):
    [learned] = trainer.finish()
    return learned.value


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_straight_through_bit_for_bit(warm, examples, tmp_path, name):
    settings = recipe(**RECIPES[name])
    whole = Trainer(warm.pipe, settings, examples, 0)
    whole.train_to(6)
    expected = value_of(whole)

    warm.reset()
    first = Trainer(warm.pipe, settings, examples, 0)
    first.train_to(2)
    with first.evaluation():
        pass
    tensors, values = first.state()
    save_tensors(tmp_path / "state.safetensors", tensors)
    warm.reset()  # with hooks that nobody took off: the pipeline is loaded anew
    second = Trainer(warm.pipe, settings, examples, 0)
    second.load_state(load_tensors(tmp_path / "state.safetensors"), values)
    second.train_to(6)
    assert torch.equal(value_of(second), expected)


def test_the_model_beside_it_stays_bit_for_bit(warm, examples):
    table = warm.pipe.text_encoder.get_input_embeddings().weight
    before, tokenizer = table.detach().clone(), warm.pipe.tokenizer
    trainer = Trainer(warm.pipe, recipe(), examples, 0)
    trainer.train_to(3)
    made = trainer.finish()
    assert warm.changed() == {}
    assert torch.equal(table, before)
    assert warm.pipe.tokenizer is tokenizer
    warm.add(made)
    assert warm.now() == made
    assert not torch.equal(made[0].value, before[tokenizer("circle").input_ids[1]])
    warm.reset()
    assert warm.pipe.tokenizer is tokenizer and table is not None


@pytest.mark.parametrize("count", [1, 2])
def test_the_gradient_is_that_of_the_published_loss(warm, examples, count):
    """v* = argmin_v E ‖ε - ε_θ(z_t, t, c(v))‖² (Gal et al., equation 2), with the embedding put in
    by other means.
    """
    pipe = warm.pipe
    trainer = Trainer(pipe, recipe(), examples, 0)
    batch = trainer._noised(0, 0)
    with in_parts(count):
        trainer._backward(0)
    [gradient] = [value.grad for value in trainer._training.parameters.values()]
    trainer.finish()

    start = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer("circle").input_ids[1]]
    word = nn.Parameter(start.detach().clone())
    ids = token_ids(pipe, ["a circle"]).expand(4, -1)
    text = encode(pipe, ids, word.expand(4, 1, -1), torch.full((4,), 2))
    found = pipe.unet(batch.noisy, batch.timesteps, encoder_hidden_states=text).sample
    functional.mse_loss(found, batch.target).backward()
    torch.testing.assert_close(gradient, word.grad, rtol=1e-4, atol=1e-7)


def test_evaluation_shows_what_finish_would_leave(warm, examples):
    trainer = Trainer(warm.pipe, recipe(ema_decay=0.9), examples, 0)
    trainer.train_to(3)
    with trainer.evaluation():
        [seen] = trainer.beside()
    raw = trainer.beside()[0].value
    assert not torch.equal(raw, seen.value)
    assert torch.equal(value_of(trainer), seen.value)


def test_every_caption_must_name_it(warm, examples):
    with pytest.raises(ResurgeError, match="12 of 12 captions do not name the token <mug>"):
        Trainer(warm.pipe, recipe(caption=None), examples, 0)
    assert not warm.pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_what_it_learns_counts_only_where_it_is_learned():
    full = {"adapter": "full", "placeholder": "<cup>", "initializer": "star"}
    assert recipe(**full).identity() == recipe(**full, lora_rank=9).identity()
    assert "placeholder" not in recipe(**full).identity()
    assert recipe(initializer="star").identity() != recipe().identity()
