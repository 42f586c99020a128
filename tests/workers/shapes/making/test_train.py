"""The whole recipe, cut short: what it writes is what the rest of the project loads."""

import pytest
import torch

from workers.shapes.judge import Judge
from workers.shapes.making.architecture import load_pipeline
from workers.shapes.making.card import write_card
from workers.shapes.making.evaluate import generate
from workers.shapes.making.recipe import Recipe, read_record
from workers.shapes.making.tokenizer import build_tokenizer
from workers.shapes.making.train import train
from workers.shapes.making.train_diffusion import Captioner

SHORT = Recipe(
    pictures=64,
    judge_pictures=64,
    vae_steps=3,
    judge_steps=3,
    unet_steps=3,
    save_every_steps=2,
    threads=1,  # more would wait for each other beside other tests, and stay set for these
)


@pytest.mark.slow
def test_a_short_run_writes_everything_that_is_loaded(tmp_path):
    train(tmp_path, SHORT)
    write_card(tmp_path, images_per_word=1, held_out_pictures=20)
    images = generate(load_pipeline(tmp_path / "pipeline"), ["a star", "a bolt"], seed=0)
    assert images.shape == (2, 3, 32, 32)
    assert set(Judge.load(tmp_path).names(images)) == {"shape", "color", "fill"}
    assert read_record(tmp_path)["unet_steps"] == 3
    assert "| UNet |" in (tmp_path / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "judge.json",
        "judge.safetensors",
        "pipeline",
        "recipe.json",
    }


def test_drawn_captions_are_true_and_sometimes_empty():
    tokenizer, captioner = build_tokenizer(), Captioner()
    labels = torch.tensor([[3, 0, 1]]).repeat(500, 1)
    ids = captioner.draw(labels, torch.Generator().manual_seed(0))
    texts = {tokenizer.decode(row, skip_special_tokens=True) for row in ids}
    assert texts == {
        "",
        "a star",
        "a red star",
        "a striped star",
        "a striped red star",
        "a shape",
        "a red shape",
        "a striped shape",
        "a striped red shape",
    }


def test_drawn_captions_never_say_a_novel_word():
    tokenizer, captioner = build_tokenizer(), Captioner()
    labels = torch.stack([torch.arange(400) % 8, torch.arange(400) % 6, torch.arange(400) % 3], 1)
    ids = captioner.draw(labels, torch.Generator().manual_seed(0))
    novel = tokenizer.convert_tokens_to_ids(["bolt</w>", "drop</w>"])
    assert not set(novel) & set(ids.flatten().tolist())
