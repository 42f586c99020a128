"""The bundled model as users have it: the same pictures as diffusers, the same weights resumed."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from workers.bases.shapes import WEIGHTS, Shapes
from workers.datasets.related import Related
from workers.diffusion.sampling import initial_noise, sample_floats
from workers.editing.pipeline import WarmPipeline
from workers.recipes import FinetuneSettings, SampleSettings
from workers.training.checkpoints import load_tensors, save_tensors
from workers.training.finetune import Trainer

STEPS = 50
PROMPTS = ("a star", "a striped red heart", "a bolt", "")


@pytest.fixture(scope="module")
def warm():
    return WarmPipeline(Shapes(Shapes.Settings()), "cpu")


def test_our_sampler_draws_what_diffusers_draws_from_the_bundled_folder(warm):
    theirs = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    theirs.set_progress_bar_config(disable=True)
    settings = SampleSettings(guidance=3.0, sampler_steps=15, images_per_prompt=2)
    noise = [initial_noise(theirs, prompt, i, 0) for prompt in PROMPTS for i in range(2)]
    expected = theirs(
        list(PROMPTS),
        num_images_per_prompt=2,
        latents=torch.stack(noise),
        guidance_scale=3.0,
        num_inference_steps=15,
        output_type="pt",
    ).images
    ours = sample_floats(warm.pipe, PROMPTS, settings)
    assert (ours - expected).abs().max() < 1e-3
    assert ours.std() > 0.05  # pictures, not blanks


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_resumed_at_half_equals_straight_steps(warm, tmp_path, adapter):
    settings = FinetuneSettings(adapter=adapter, learning_rate=1e-3, steps=STEPS, batch_size=2)
    examples = Related(Related.Settings(size=16)).examples("star", 32)

    def trainer():
        warm.reset()
        return Trainer(warm.pipe, settings, examples, seed=0)

    straight = trainer()
    straight.train_to(STEPS)
    straight.finish()
    expected = warm.changed()

    first = trainer()
    first.train_to(STEPS // 2)
    tensors, meta = first.state()
    save_tensors(tmp_path / "checkpoint.safetensors", tensors)
    first.finish()
    second = trainer()
    second.load_state(load_tensors(tmp_path / "checkpoint.safetensors"), meta)
    second.train_to(STEPS)
    second.finish()
    resumed = warm.changed()

    assert expected.keys() == resumed.keys()
    assert expected
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
