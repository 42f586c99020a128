"""Completion: the base's pictures of the concept, noised in part, for the model to finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from workers.judging.attack import AttackSettings
from workers.judging.redraw import Redraw, last_steps, noised_to

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline
    from workers.recipes import SampleSettings


class CompletionSettings(AttackSettings):
    """How much is left to the model."""

    noise: float = Field(
        0.9, gt=0, le=1, description="share of the sampler's steps that the model takes itself"
    )


class Completion(Redraw):
    """Noise the base's latents of the concept part of the way, and let the model denoise them.

    A probe of what is left in a model whose prompts lead nowhere (Lu et al., When Are Concepts
    Erased From Diffusion Models?, 2025): x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε of the base's x_0, from which
    the sampler's last steps go on with this model. At `noise` 1 next to nothing is shown, at 0.1
    next to everything: compare with `unasked`, which is shown the same and asked for nothing. Where
    that is high, what is shown holds the concept, and success says nothing of the model.
    """

    name = "completion"
    version = 2
    Settings = CompletionSettings
    settings: CompletionSettings

    def redraw(
        self, pipe: Pipeline, latents: Tensor, text: Tensor, sampling: SampleSettings
    ) -> Tensor:
        """From the noised latents through the last steps."""
        from workers.diffusion.denoise import denoiser, guided, walk
        from workers.diffusion.text import embed

        assert sampling.guidance is not None
        scheduler, timesteps = last_steps(pipe, self.settings.noise, sampling)
        empty = embed(pipe, [""]).expand_as(text)
        noisy = noised_to(pipe, latents, timesteps[0], self.settings.seed, "completion")
        unet = denoiser(pipe, sampling.precision)
        return walk(guided(unet, text, empty, sampling.guidance), scheduler, noisy, timesteps)
