"""Prompts and noise -> pictures, batched over prompts and images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orchestrator.core.artifacts import Probe
from workers.diffusion.denoise import (
    Predict,
    denoiser,
    from_noise,
    guided,
    latent_shape,
    sampler,
)
from workers.diffusion.rng import normal
from workers.diffusion.text import embed, refuse_cut
from workers.interfaces.metric import Picture
from workers.recipes import SampleSettings
from workers.runtime.finite import NotFinite
from workers.runtime.parts import in_parts, part_size
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


def sample(
    pipe: Pipeline,
    probes: Sequence[Probe],
    settings: SampleSettings,
    text: Tensor | None = None,
) -> list[Picture]:
    """All pictures of all probes, prompt by prompt; `prompt_index` counts the probes.

    `settings.guidance` and `settings.sampler_steps` must be numbers (the base's own, if the sweep
    left them open). A picture is a function of the weights, the prompt, its `image_index` and
    `noise_seed`, so it does not depend on what else is asked, and every model starts from the
    same noise. The batch size changes no more than floating-point rounding. `text` are embeddings
    (probes, tokens, width) to draw from in place of the prompts' own. A probe's own `noise_seed`
    goes before the settings'.
    """
    usual = settings.noise_seed
    seeds = [usual if probe.noise_seed is None else probe.noise_seed for probe in probes]
    prompts = [probe.prompt for probe in probes]
    if text is None:
        refuse_cut(pipe.tokenizer, [probe.prompt for probe in probes if not probe.may_be_cut])
        text = embed(pipe, prompts)
    batches = _batches(pipe, prompts, settings, text, seeds)
    return _told_apart(torch.cat([levels(images) for images in batches]), probes)


def as_pictures(images: Tensor, probes: Sequence[Probe]) -> list[Picture]:
    """Pictures (n, 3, height, width) in [0, 1], equally many a probe, as they are judged."""
    return _told_apart(levels(images), probes)


def levels(images: Tensor) -> Tensor:
    """Pictures (n, 3, height, width) in [0, 1] as uint8 (n, height, width, 3) on the CPU.

    Rounded where they are: a quarter of the bytes is fetched from a GPU.
    """
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def _told_apart(levels: Tensor, probes: Sequence[Probe]) -> list[Picture]:
    pixels = levels.numpy()
    each = len(pixels) // max(1, len(probes))
    return [
        Picture(probe=probe, prompt_index=p, image_index=i, image=pixels[p * each + i])
        for p, probe in enumerate(probes)
        for i in range(each)
    ]


def sample_floats(
    pipe: Pipeline,
    prompts: Sequence[str],
    settings: SampleSettings,
    text: Tensor | None = None,
    noise_seeds: Sequence[int] | None = None,
) -> Tensor:
    """Pictures (prompts · images_per_prompt, 3, height, width) in [0, 1], fp32 on the CPU.

    `noise_seeds` are the prompts' own, in place of the settings' one.

    Raises:
        NotFinite: a picture has numbers that are none; it would be stored as a black one.
    """
    if text is None:
        refuse_cut(pipe.tokenizer, prompts)
        text = embed(pipe, prompts)
    seeds = noise_seeds or [settings.noise_seed] * len(prompts)
    batches = _batches(pipe, prompts, settings, text, seeds)
    return torch.cat([images.cpu() for images in batches])


@torch.inference_mode()
def _batches(
    pipe: Pipeline,
    prompts: Sequence[str],
    settings: SampleSettings,
    text: Tensor,
    seeds: Sequence[int],
) -> Iterator[Tensor]:
    """The same, a batch at a time and still on the pipeline's device."""
    if settings.guidance is None or settings.sampler_steps is None:
        raise ValueError("guidance and sampler_steps must be resolved to numbers before sampling")
    empty = embed(pipe, [""])
    jobs = [(p, i) for p in range(len(prompts)) for i in range(settings.images_per_prompt)]
    size = part_size(settings.batch_size)
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        noise = [initial_noise(pipe, prompts[p], i, seeds[p]) for p, i in batch]
        rows = torch.tensor([p for p, _ in batch], device=text.device)
        latents = torch.stack(noise).to(pipe.device, pipe.unet.dtype)
        with in_parts(1):  # the passes are small already
            drawn = _draw(pipe, latents, text[rows], empty, settings, (start, len(jobs)))
        _refuse_not_finite(drawn, [(prompts[p], i) for p, i in batch], pipe)
        yield drawn.clamp(0, 1)


def initial_noise(pipe: Pipeline, prompt: str, image_index: int, noise_seed: int) -> Tensor:
    """The latents (channels, height, width) from which one picture starts, on the CPU."""
    key = hashlib.sha256(prompt.encode()).hexdigest()
    return normal(latent_shape(pipe), noise_seed, image_index, f"initial noise {key}")


def _draw(
    pipe: Pipeline,
    latents: Tensor,
    text: Tensor,
    empty: Tensor,
    settings: SampleSettings,
    at: tuple[int, int],
) -> Tensor:
    """Latents (n, c, h, w) and text (n, tokens, width) -> pictures (n, 3, height, width).

    They are about 0 to 1 and not clamped, which would hide infinite numbers. `at` is how many
    pictures are drawn already, of how many.
    """
    assert settings.guidance is not None and settings.sampler_steps is not None
    scheduler = sampler(pipe, settings.sampler, settings.sampler_steps)
    unet = denoiser(pipe, settings.precision)
    predict = guided(unet, text, empty.expand_as(text), settings.guidance)
    predict = _told(predict, len(latents), settings.sampler_steps, at)
    return decoded(pipe, from_noise(predict, scheduler, latents)).float()


def decoded(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Clean latents (n, c, h, w) -> pictures (n, 3, height, width), about 0 to 1."""
    return pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5


def _refuse_not_finite(pictures: Tensor, asked: Sequence[tuple[str, int]], pipe: Pipeline) -> None:
    """`asked` are each picture's prompt and image_index."""
    is_finite = pictures.isfinite().flatten(1).all(1).tolist()
    if all(is_finite):
        return
    prompt, index = asked[is_finite.index(False)]
    is_half = pipe.unet.dtype != torch.float32
    advice = "set the base's torch_dtype to float32" if is_half else "the weights are worthless"
    raise NotFinite(
        f"{is_finite.count(False)} of {len(asked)} pictures are not finite (NaN or infinite), the "
        f"first of prompt {prompt!r}, image {index}; {advice}"
    )


def _told(predict: Predict, count: int, steps: int, at: tuple[int, int]) -> Predict:
    """Say at every sampler step how far the pictures are: a large pass takes minutes."""
    taken, (drawn, total) = 0, at

    def told(latents: Tensor, timestep: float) -> Tensor:
        nonlocal taken
        found = predict(latents, timestep)
        taken += 1
        tell(drawn + count * taken // steps, total)
        return found

    return told
