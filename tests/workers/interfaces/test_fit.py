"""Schedules on which training and sampling are right are allowed, the rest refused by name."""

import diffusers
import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.sampling import initial_noise, sample_floats
from workers.interfaces.fit import SCHEDULERS, refuse_unfit, scheduler_faults
from workers.recipes import SampleSettings

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# That one needs a package of its own to be made.
@pytest.mark.parametrize("name", sorted({*SCHEDULERS} - {"DPMSolverSDEScheduler"}))
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_known_schedulers_have_the_very_schedule_that_is_trained_and_drawn_on(pipe, name, kind):
    scheduler = getattr(diffusers, name)(**BETAS, prediction_type=kind)
    assert scheduler_faults(scheduler.config, name) == []
    ours = diffusers.DDPMScheduler.from_config(scheduler.config)
    torch.testing.assert_close(ours.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    "name",
    [
        "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
        "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "LCMScheduler", "TCDScheduler",
        "CMStochasticIterativeScheduler", "ScoreSdeVeScheduler", "KarrasVeScheduler",
        "DDPMWuerstchenScheduler", "NewScheduler",
    ],
)  # fmt: skip
def test_other_schedulers_are_refused_by_name(name):
    (fault,) = scheduler_faults({"_class_name": name})
    assert fault.startswith(f"the scheduler is a {name};")
    assert "DDIMScheduler" in fault


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'; it must be one of epsilon, v_p"),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'; it must be one of linear, scaled"),
        ({"beta_schedule": None}, "beta_schedule None"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR a predicted noise says nothing"),
        ({"trained_betas": [0.1, 1.0]}, "trained_betas that are not all between 0 and 1"),
        ({"beta_end": None}, "beta_end None; it must be a number between 0 and 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps 0"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas True; it must be null"),
        ({"sigma_max": 80.0}, "sigma_max 80.0; it must be null"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(config, said):
    (fault,) = scheduler_faults({"_class_name": "EulerDiscreteScheduler", **config})
    assert said in fault


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_v_at_zero_terminal_snr_is_allowed_and_drawn_as_the_pipeline_itself_does(pipe, spacing):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
    )
    refuse_unfit(pipe, "tiny")
    noise = torch.stack([initial_noise(pipe, "a star", i, 0) for i in range(2)])
    expected = pipe(
        "a star", num_images_per_prompt=2, latents=noise, guidance_scale=3.0,
        num_inference_steps=4, output_type="pt",
    ).images  # fmt: skip
    settings = SampleSettings(guidance=3.0, sampler_steps=4, images_per_prompt=2)
    found = sample_floats(pipe, ["a star"], settings)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_loaded_pipeline_is_told_all_that_is_wrong_at_once(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe.unet.register_to_config(sample_size=(8, 16))
    pipe.tokenizer.model_max_length = int(1e30)
    with pytest.raises(ResurgeError) as error:
        refuse_unfit(pipe, "mine")
    for said in (
        "'mine' cannot be used",
        "FlowMatchEuler",
        "sample_size [8, 16]",
        "prompts of 1,0",
    ):
        assert said in str(error.value)
