"""Diffusion's own functions: samplers, guidance and training targets, a few lines each.

One convention holds everywhere: a sampler's steps count from the noisy side. Step k of N is the
one that starts at `scheduler.timesteps[k]`; k = 0 is pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from workers.diffusion.rng import integers, normal
from workers.runtime.parts import by_parts

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline, Predicted, SchedulerConfig, UNet
    from workers.interfaces.unlearner import LossIn


class NoiseSchedule(Protocol):
    """A noise schedule as the forward process: diffusers' DDPM scheduler."""

    alphas_cumprod: Tensor
    """ā of every time step: (steps,)."""

    @property
    def config(self) -> SchedulerConfig: ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor, /) -> Tensor:
        """x_t of clean latents (n, c, h, w), at time steps (n,)."""

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor, /) -> Tensor:
        """v of clean latents and their noise, of their shape."""


class Stepped(Protocol):
    """What a sampler's step returns."""

    prev_sample: Tensor
    """Latents, a step less noisy."""


class Sampler(Protocol):
    """A noise schedule walked backwards: diffusers' DDIM scheduler."""

    timesteps: Tensor
    """Of the sampler's steps, from the noisy side: (steps,)."""
    init_noise_sigma: float

    def step(self, prediction: Tensor, timestep: float, latents: Tensor, /) -> Stepped:
        """Latents (n, c, h, w) with what the model predicts of them, one step on."""

    def scale_model_input(self, latents: Tensor, timestep: float, /) -> Tensor:
        """Latents as the model is shown them; what a sampler shows is most often they themselves.

        Has to be asked at every step.
        """


class Denoiser(Protocol):
    """A UNet, or what computes as one."""

    def __call__(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor
    ) -> Predicted: ...


Predict = Callable[[Tensor, float], Tensor]
"""(latents, timestep) -> the model's prediction, of the latents' shape."""
SAMPLERS = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Diffusers' schedulers beside DDIM, and what of them is not as the pipeline's schedule has it."""


NoisePredictor = Callable[[Tensor, "Tensor | float", Tensor], Tensor]
"""(latents (n, c, h, w), time steps (n,) or one, text (n, tokens, width)) -> noise, fp32."""


def ddim(pipe: Pipeline, steps: int) -> Sampler:
    """A fresh DDIM sampler (Song et al. 2021, eta 0) of `steps` steps on the pipeline's schedule.

    Latents have no natural bounds, so they are clipped only if the pipeline's own configuration
    asks for it; DDIM's default would.
    """
    from diffusers import DDIMScheduler

    config = pipe.scheduler.config
    scheduler = DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    scheduler.set_timesteps(steps)
    sampler: Sampler = scheduler
    return sampler


def sampler(pipe: Pipeline, name: str, steps: int) -> Sampler:
    """A fresh sampler of `steps` steps on the pipeline's schedule, without noise of its own.

    `ddim`; `dpmsolver++` of second order (Lu et al. 2022), `unipc` (Zhao et al., NeurIPS 2023) and
    `euler` (Karras et al. 2022, algorithm 2 without churn). As diffusers has them, at even time
    steps.
    """
    import diffusers

    if name == "ddim":
        return ddim(pipe, steps)
    cls, own = SAMPLERS[name]
    scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **own)
    scheduler.set_timesteps(steps, device=pipe.device)
    made: Sampler = scheduler
    return made


def latent_shape(pipe: Pipeline) -> tuple[int, int, int]:
    """(channels, height, width) of the latents that the pipeline's UNet was made for."""
    config = pipe.unet.config
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return config.in_channels, height, width


def training_scheduler(pipe: Pipeline) -> NoiseSchedule:
    """The pipeline's noise schedule as the forward process (Ho et al. 2020), for training."""
    from diffusers import DDPMScheduler

    scheduler: NoiseSchedule = DDPMScheduler.from_config(pipe.scheduler.config)
    return scheduler


def training_target(
    scheduler: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """What the UNet should predict: the noise, or v (Salimans and Ho 2022). Shape of `latents`."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction' but got {kind!r}")


def to_noise(
    scheduler: NoiseSchedule, prediction: Tensor, latents: Tensor, timesteps: Tensor | int
) -> Tensor:
    """The noise that a prediction means, whatever the model predicts; shape of `latents`.

    With ā the schedule's cumulative product, x_t = √ā x_0 + √(1-ā) ε and v = √ā ε - √(1-ā) x_0
    (Salimans and Ho 2022), so ε = √ā v + √(1-ā) x_t. Every unlearning loss is written in ε and
    comes through here; nothing else knows what a model predicts.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return at_least_fp32(prediction)
    if kind != "v_prediction":
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction' but got {kind!r}")
    kept = scheduler.alphas_cumprod.to(latents.device)[timesteps].reshape(-1, 1, 1, 1)
    v, x_t = at_least_fp32(prediction), at_least_fp32(latents)
    return kept.sqrt() * v + (1 - kept).sqrt() * x_t


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision as fp32; anything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def noise_predictor(pipe: Pipeline, unet: UNet | None = None) -> NoisePredictor:
    """ε_θ of the pipeline's UNet, or of another one on the same schedule."""
    network, scheduler = unet or pipe.unet, training_scheduler(pipe)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(pipe.device)

    def part(latents: Tensor, timesteps: Tensor | int, text: Tensor) -> Tensor:
        when = filled(timesteps, latents.device)
        prediction = network(latents, when, encoder_hidden_states=text).sample
        return to_noise(scheduler, prediction, latents, timesteps)

    return lambda latents, timesteps, text: by_parts(part, latents, timesteps, text)


def predictor(pipe: Pipeline, loss_in: LossIn, unet: UNet | None = None) -> NoisePredictor:
    """What a loss compares: the UNet's own output, or the noise that it means.

    The two are one for a model that predicts noise. For one that predicts v, with targets that are
    linear in the outputs, a mean square in noise is ᾱ_t times that of the outputs: hardly anything
    at high noise (0.0047 at t = 999 on Stable Diffusion 2's schedule).
    """
    if loss_in == "noise":
        return noise_predictor(pipe, unet)
    network = unet or pipe.unet

    def part(latents: Tensor, timesteps: Tensor | int, text: Tensor) -> Tensor:
        when = filled(timesteps, latents.device)
        return at_least_fp32(network(latents, when, encoder_hidden_states=text).sample)

    return lambda latents, timesteps, text: by_parts(part, latents, timesteps, text)


def noise_pair(
    predict: NoisePredictor,
    latents: Tensor,
    timesteps: Tensor | float,
    first: Tensor,
    second: Tensor,
) -> tuple[Tensor, Tensor]:
    """ε under two texts in one pass; latents (n, c, h, w), texts (n, tokens, width)."""
    if isinstance(timesteps, Tensor):
        timesteps = torch.cat([timesteps, timesteps])
    both = predict(torch.cat([latents, latents]), timesteps, torch.cat([first, second]))
    a, b = both.chunk(2)
    return a, b


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): u + scale · (c - u)."""
    return unconditional + scale * (conditional - unconditional)


_drawn_text: ContextVar[Tensor | None] = ContextVar("drawn_text", default=None)


@contextmanager
def _drawing(text: Tensor) -> Iterator[None]:
    token = _drawn_text.set(text)
    try:
        yield
    finally:
        _drawn_text.reset(token)


def drawn_text() -> Tensor | None:
    """The embeddings (n, tokens, width) of the n pictures that the present pass draws under
    guidance, whose rows are theirs and then their unconditional halves; None in any other pass.

    What an edit does to a picture as a whole reads it in both halves.
    """
    return _drawn_text.get()


def filled(timestep: Tensor | float, device: torch.device) -> Tensor:
    """A time step as a tensor: a number is filled in there, where one that is copied to a GPU would
    be waited for, and all the work before it too.
    """
    if isinstance(timestep, Tensor):
        return timestep
    kind = torch.int64 if isinstance(timestep, int) else torch.float64
    return torch.full((), timestep, dtype=kind, device=device)


def denoiser(pipe: Pipeline, precision: Literal["fp32", "bf16"]) -> Denoiser:
    """The pipeline's UNet as pictures are drawn with it; bf16 is autocast over fp32 weights, and
    what it predicts is fp32 again, for guidance and the sampler.
    """
    unet = pipe.unet
    if precision == "fp32":
        return unet

    def predict(
        sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor
    ) -> Predicted:
        with torch.autocast(sample.device.type, torch.bfloat16):
            found = unet(sample, timestep, encoder_hidden_states=encoder_hidden_states)
        found.sample = found.sample.float()
        return found

    return predict


def guided(unet: Denoiser, text: Tensor, empty: Tensor, scale: float) -> Predict:
    """The UNet under guidance towards `text` and away from `empty`, both (n, tokens, width).

    At a scale of 1 or less there is nothing to guide, and the pass for `empty` is left out, as
    Stable Diffusion's pipeline does.
    """

    def alone(latents: Tensor, timestep: Tensor | float, text: Tensor) -> Tensor:
        when = filled(timestep, latents.device)
        return unet(latents, when, encoder_hidden_states=text).sample

    def pair(latents: Tensor, timestep: Tensor | float, texts: Tensor) -> Tensor:
        asked, away = texts.unbind(1)
        with _drawing(asked):
            return guide(*noise_pair(alone, latents, timestep, asked, away), scale)

    if scale <= 1:
        return lambda latents, timestep: by_parts(alone, latents, timestep, text)
    # A picture's two halves stay in one part.
    both = torch.stack([text, empty], dim=1)
    return lambda latents, timestep: by_parts(pair, latents, timestep, both)


def walk(predict: Predict, scheduler: Sampler, latents: Tensor, timesteps: Iterable[int]) -> Tensor:
    """Take the steps of `scheduler` that start at `timesteps`, one after the other.

    Each goes on to the time step that the sampler's spacing has next, whatever is walked then.
    """
    for timestep in timesteps:
        latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
    return latents


def denoise(predict: Predict, scheduler: Sampler, latents: Tensor, steps: int) -> Tensor:
    """Take the first `steps` steps of `scheduler` from noise `latents` (n, c, h, w).

    The result is at the noise level of `scheduler.timesteps[steps]`; after all steps it is the
    clean picture.
    """
    # Integers, read once: a time step that stays on a GPU would be waited for at every step.
    return walk(predict, scheduler, latents, scheduler.timesteps[:steps].tolist())


def from_noise(predict: Predict, scheduler: Sampler, noise: Tensor) -> Tensor:
    """Clean latents (n, c, h, w) from noise of variance 1, by all of a sampler's steps."""
    latents = noise * scheduler.init_noise_sigma
    # Read once: a time step that stays on a GPU would be waited for at every step.
    for timestep in scheduler.timesteps.tolist():
        shown = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(predict(shown, timestep), timestep, latents).prev_sample
    return latents


def min_snr_weights(scheduler: NoiseSchedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights (n,) of the loss at time steps (n,): min-SNR-γ (Hang et al., ICCV 2023).

    min(SNR, γ) / SNR where the noise is predicted, min(SNR, γ) / (SNR + 1) for v, with
    SNR = ᾱ / (1 - ᾱ): both are the loss on x_0 with a weight of min(SNR, γ).
    """
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = kept / (1 - kept)
    is_v = scheduler.config.get("prediction_type", "epsilon") == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if is_v else snr)


def noised(
    scheduler: NoiseSchedule, latents: Tensor, seed: int, step: int, stream: str
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t of clean `latents` (n, c, h, w), its noise, and uniform time steps (n,)."""
    noise = normal(latents.shape, seed, step, f"noise {stream}", latents.device)
    noise = noise.to(latents.dtype)
    high = scheduler.config.num_train_timesteps
    timesteps = integers(high, len(latents), seed, step, f"timesteps {stream}", latents.device)
    return scheduler.add_noise(latents, noise, timesteps), noise, timesteps
