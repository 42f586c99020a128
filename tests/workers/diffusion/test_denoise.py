import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from workers.diffusion.denoise import (
    ddim,
    denoise,
    guide,
    guided,
    min_snr_weights,
    training_scheduler,
    training_target,
)
from workers.diffusion.rng import normal


@pytest.mark.parametrize("k", [0, 1, 6, 9])
def test_partial_denoising_ends_at_the_noise_level_of_timestep_k(pipe, k):
    """With an oracle for a known picture, DDIM stays on the line between it and one noise."""
    scheduler = ddim(pipe, 10)
    alphas = scheduler.alphas_cumprod
    clean, noise = normal((2, 4, 8, 8), 0, 0, "clean"), normal((2, 4, 8, 8), 0, 0, "noise")

    def at(t):
        return alphas[t].sqrt() * clean + (1 - alphas[t]).sqrt() * noise

    def oracle(latents, t):
        return (latents - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()

    got = denoise(oracle, scheduler, at(scheduler.timesteps[0]), k)
    torch.testing.assert_close(got, at(scheduler.timesteps[k]), atol=1e-4, rtol=1e-4)


def test_steps_count_from_the_noisy_side(pipe):
    timesteps = ddim(pipe, 10).timesteps.tolist()
    assert timesteps == sorted(timesteps, reverse=True)


def test_latents_are_not_clipped_by_a_default_that_the_pipeline_never_chose(pipe):
    pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    assert ddim(pipe, 10).config.clip_sample is False


def test_the_target_is_the_noise_or_v(pipe):
    latents, noise = normal((3, 4, 8, 8), 0, 0, "a"), normal((3, 4, 8, 8), 0, 0, "b")
    timesteps = torch.tensor([0, 500, 999])
    scheduler = training_scheduler(pipe)
    assert training_target(scheduler, latents, noise, timesteps) is noise

    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    scheduler = training_scheduler(pipe)
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(training_target(scheduler, latents, noise, timesteps), v)


def test_guidance_by_hand():
    assert guide(torch.tensor(3.0), torch.tensor(1.0), 2.0).item() == 5.0


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (3.0, 4)])
def test_no_pass_for_the_empty_prompt_without_guidance(pipe, scale, rows):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    text = torch.zeros(2, 16, 64)
    guided(pipe.unet, text, text, scale)(torch.zeros(2, 4, 8, 8), 5)
    assert seen == [rows]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_paper(kind):
    """w · ‖prediction‖² is min(SNR, γ) · ‖x_0‖²: for the noise divided by SNR, for v by SNR + 1."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    timesteps = torch.tensor([0, 100, 500, 999])
    kept = scheduler.alphas_cumprod[timesteps].double()
    snr = kept / (1 - kept)
    divisor = snr if kind == "epsilon" else snr + 1
    expected = torch.minimum(snr, torch.tensor(5.0)) / divisor
    found = min_snr_weights(scheduler, timesteps, 5.0).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert snr[0] > 5 > snr[2]
