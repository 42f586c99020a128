"""What a base's parts must be for training and sampling here to be right; the rest is refused.

Every function takes configurations as they stand in files or in loaded parts, so that planning can
ask before anything is loaded, and gives sentences: none if all is well. A key that is not there has
its class's default, which only the loaded part knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import ResurgeError

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

Config = Mapping[str, Any]

PREDICTIONS = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Those that DDPM and DDIM, which train and draw here, both have."""
SCHEDULERS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""They walk one and the same noise schedule, which is read from them: discrete betas."""
OTHER_NOISE = ("use_flow_sigmas", "sigma_min", "sigma_max")
"""Options with which even these have noise that is not the betas'."""
OTHER_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type",
                "time_cond_proj_dim", "num_class_embeds")  # fmt: skip
"""Options with which a UNet takes more than latents, a time step and text."""


def scheduler_faults(config: Config, name: str | None = None) -> list[str]:
    """Of a scheduler's configuration; `name` is the class that it is loaded as."""
    classes = [named for named in (config.get("_class_name"), name) if named is not None]
    if others := [named for named in classes if named not in SCHEDULERS]:
        return [
            f"the scheduler is a {others[0]}; training and sampling here are right on a discrete "
            "schedule of betas with a prediction of the noise or of v only: if the model was "
            f"trained on one, take a scheduler that has it ({', '.join(SCHEDULERS[:4])}, …)"
        ]
    found = []
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        found.append(f"prediction_type {kind!r}; it must be one of {', '.join(PREDICTIONS)}")
    trained, betas = config.get("trained_betas"), config.get("beta_schedule", "linear")
    if trained is not None:
        # A last beta of 1 is zero terminal SNR by another name.
        allowed = all(_is_number(b) and 0 < b <= 1 for b in trained)
        if not allowed or (kind == "epsilon" and 1 in trained):
            found.append("trained_betas that are not all between 0 and 1")
    elif betas not in BETA_SCHEDULES:
        found.append(f"beta_schedule {betas!r}; it must be one of {', '.join(BETA_SCHEDULES)}")
    if config.get("rescale_betas_zero_snr") and kind == "epsilon":
        found.append(
            "rescale_betas_zero_snr with prediction_type 'epsilon'; at zero terminal SNR a "
            "predicted noise says nothing of the picture: such models predict v (v_prediction), "
            "and others have rescale_betas_zero_snr: false"
        )
    for key in ("beta_start", "beta_end"):
        value = config.get(key, 0.01)
        if not _is_number(value) or not 0 < value < 1:
            found.append(f"{key} {value!r}; it must be a number between 0 and 1")
    steps = config.get("num_train_timesteps", 1000)
    if not _is_count(steps):
        found.append(f"num_train_timesteps {steps!r}; it must be a whole number above 0")
    found += [f"{key} {config[key]!r}; it must be null" for key in OTHER_NOISE if config.get(key)]
    return [f"the scheduler has {fault}" for fault in found]


def unet_faults(config: Config) -> list[str]:
    """Of the denoiser's configuration."""
    found = []
    size = config.get("sample_size")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(map(_is_count, pair)):
        found.append(
            f"sample_size {_json(size)}; it must be the side of the latents in whole numbers "
            "(64 for pictures of 512 pixels)"
        )
    elif pair[0] != pair[1]:
        found.append(
            f"sample_size {list(pair)}; pictures here are square, so it must be one number"
        )
    found += [
        f"{key} {config[key]!r}; a UNet that takes more than latents, a time step and text cannot "
        "be used"
        for key in OTHER_INPUTS
        if config.get(key) is not None
    ]
    for key in ("in_channels", "out_channels", "layers_per_block", "cross_attention_dim"):
        if key in config and not _is_count(config[key]):
            found.append(f"{key} {_json(config[key])}; it must be a whole number above 0")
    before, after = config.get("in_channels", 4), config.get("out_channels", 4)
    if before != after:
        found.append(f"{before} input and {after} output channels; they must be as many")
    return [f"the UNet has {fault}" for fault in found]


def vae_faults(config: Config) -> list[str]:
    """Of the autoencoder's configuration."""
    found = []
    scale = config.get("scaling_factor", 0.18215)
    if not _is_number(scale) or scale <= 0:
        found.append(f"scaling_factor {_json(scale)}; it must be a number above 0")
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            found.append(f"{key} {config[key]!r}; latents here are scaled and not shifted")
    channels = config.get("latent_channels", 4)
    if not _is_count(channels):
        found.append(f"latent_channels {_json(channels)}; it must be a whole number above 0")
    return [f"the autoencoder has {fault}" for fault in found]


def between_faults(unet: Config, vae: Config, text: Config) -> list[str]:
    """Of parts that must fit each other; only what all of them say is compared."""
    found = []
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        found.append(f"a UNet of {channels} channels is over latents of {latents}")
    width, given = unet.get("cross_attention_dim"), text.get("hidden_size")
    if None not in (width, given) and width != given:
        found.append(
            f"the text encoder gives {given} numbers a token but the UNet takes {width}: they are "
            "parts of different models"
        )
    return found


def tokenizer_faults(tokens: int, length: int, text: Config) -> list[str]:
    """Of a tokenizer of so many tokens and prompts so long, for that text encoder."""
    rows, positions = text.get("vocab_size", tokens), text.get("max_position_embeddings", length)
    if tokens <= rows and length <= positions:
        return []
    return [
        f"the tokenizer has {tokens:,} tokens and prompts of {length:,} but the text encoder "
        f"{rows:,} and {positions}: take the tokenizer that the model was made with, with its "
        "model_max_length"
    ]


def refuse_unfit(pipe: Pipeline, name: str) -> None:
    """See that a loaded pipeline can be worked with; `name` is what the base is called.

    Raises:
        ResurgeError: all that is wrong, in one message.
    """
    scheduler, parts = pipe.scheduler, (pipe.unet, pipe.vae, pipe.text_encoder)
    unet, vae, text = (_as_mapping(part.config) for part in parts)
    found = scheduler_faults(_as_mapping(scheduler.config), type(scheduler).__name__)
    found += unet_faults(unet) + vae_faults(vae) + between_faults(unet, vae, text)
    found += tokenizer_faults(len(pipe.tokenizer), pipe.tokenizer.model_max_length, text)
    refuse(found, name)


def refuse(faults: list[str], name: str) -> None:
    """Raise what is wrong, if anything is."""
    if faults:
        raise ResurgeError(f"{name!r} cannot be used: {'; '.join(faults)}")


def _as_mapping(config: Any) -> Config:
    return config if isinstance(config, Mapping) else config.to_dict()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _json(value: object) -> str:
    return "null" if value is None else repr(value)
