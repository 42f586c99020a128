import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from orchestrator.core.artifacts import Probe
from orchestrator.core.errors import ResurgeError
from workers.diffusion.sampling import initial_noise, sample, sample_floats
from workers.recipes import SampleSettings

PROMPTS = ("a star", "a red circle", "a striped heart")


def settings(**values):
    return SampleSettings(
        **({"guidance": 3.0, "sampler_steps": 4, "images_per_prompt": 2} | values)
    )


SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_same_pictures_as_the_pipelines_own_call(pipe, sampler, guidance, prediction):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    s = settings(guidance=guidance, sampler=sampler, sampler_steps=6)
    noise = [initial_noise(pipe, p, i, s.noise_seed) for p in PROMPTS for i in range(2)]
    ours = sample_floats(pipe, PROMPTS, s)
    pipe.scheduler = SCHEDULERS[sampler].from_config(pipe.scheduler.config)
    expected = pipe(
        list(PROMPTS),
        num_images_per_prompt=2,
        latents=torch.stack(noise),
        guidance_scale=guidance,
        num_inference_steps=6,
        output_type="pt",
    ).images
    assert (ours - expected).abs().max() < 1e-3


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_every_sampler_repeats_itself_and_draws_other_pictures_than_the_others(pipe, sampler):
    first = sample_floats(pipe, PROMPTS, settings(sampler=sampler))
    assert torch.equal(sample_floats(pipe, PROMPTS, settings(sampler=sampler)), first)
    others = set(SCHEDULERS) - {sampler}
    assert all(
        not torch.equal(sample_floats(pipe, PROMPTS, settings(sampler=other)), first)
        for other in others
    )


def test_half_precision_draws_nearly_the_same_pictures_and_is_told_apart(pipe):
    whole, half = (sample_floats(pipe, PROMPTS, settings(precision=p)) for p in ("fp32", "bf16"))
    assert 0 < (half - whole).abs().mean() < 0.02
    assert half.dtype == pipe.unet.dtype == torch.float32
    assert settings(precision="bf16").identity() != settings().identity()
    assert settings(precision="fp32").identity() == settings().identity()


def test_a_picture_depends_neither_on_the_batch_nor_on_the_other_prompts(pipe):
    together = sample_floats(pipe, PROMPTS, settings())
    small = sample_floats(pipe, PROMPTS, settings(batch_size=1))
    alone = sample_floats(pipe, PROMPTS[1:2], settings())
    torch.testing.assert_close(small, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, together[2:4], atol=1e-5, rtol=0)


def test_noise_differs_by_prompt_image_and_seed(pipe):
    noises = [
        initial_noise(pipe, *key) for key in [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    ]
    assert len({noise.sum().item() for noise in noises}) == 4


def test_pictures_come_with_their_probes_in_order(pipe):
    probes = [Probe("erased", "star", "a star"), Probe("retained", "circle", "a circle")]
    pictures = sample(pipe, probes, settings())
    assert [(p.probe, p.prompt_index, p.image_index) for p in pictures] == [
        (probes[0], 0, 0), (probes[0], 0, 1), (probes[1], 1, 0), (probes[1], 1, 1),
    ]  # fmt: skip
    assert all(p.image.dtype == np.uint8 and p.image.shape == (32, 32, 3) for p in pictures)


def test_open_settings_are_refused(pipe):
    with pytest.raises(ValueError, match="resolved"):
        sample_floats(pipe, PROMPTS, settings(guidance=None))


def test_a_rows_own_noise_seed_goes_before_the_settings(pipe):
    own, usual = Probe("erased", "star", "a star", noise_seed=7), Probe("erased", "star", "a star")
    mixed = sample(pipe, [own, usual], settings())
    other = sample(pipe, [usual], settings(noise_seed=7))
    assert np.array_equal(mixed[0].image, other[0].image)
    assert not np.array_equal(mixed[0].image, mixed[2].image)


def test_a_prompt_may_be_cut_if_its_row_says_so(pipe):
    long = " ".join(["a star"] * pipe.tokenizer.model_max_length)
    with pytest.raises(ResurgeError, match="would be cut off"):
        sample(pipe, [Probe("erased", "star", long)], settings())
    assert len(sample(pipe, [Probe("erased", "star", long, may_be_cut=True)], settings())) == 2
