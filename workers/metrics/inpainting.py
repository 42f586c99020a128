"""Inpainting: the base's pictures of the concept with their middle cut out, to be filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from workers.judging.attack import AttackSettings
from workers.judging.redraw import Redraw, last_steps, noised_to

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline
    from workers.recipes import SampleSettings


class InpaintingSettings(AttackSettings):
    """How much is left to the model."""

    hidden: float = Field(
        0.5, gt=0, le=1, description="share of each side that the square in the middle takes"
    )


class Inpainting(Redraw):
    """Cut a square out of the base's latents of the concept, and let the model draw it.

    A probe of what is left in a model whose prompts lead nowhere (Lu et al., When Are Concepts
    Erased From Diffusion Models?, 2025). Drawn as in blended latent diffusion (Avrahami et al.,
    2023) and RePaint (Lugmayr et al., 2022, eq. 8, without its resampling): before every step what
    lies outside the square is the base's own x_t. What is left outside may show the concept by
    itself: compare with `unasked`.
    """

    name = "inpainting"
    version = 1
    Settings = InpaintingSettings
    settings: InpaintingSettings

    def redraw(
        self, pipe: Pipeline, latents: Tensor, text: Tensor, sampling: SampleSettings
    ) -> Tensor:
        """From noise, with the outside put back at every step."""
        import torch

        from workers.diffusion.denoise import denoiser, guided, walk
        from workers.diffusion.rng import normal
        from workers.diffusion.text import embed

        assert sampling.guidance is not None
        scheduler, timesteps = last_steps(pipe, 1.0, sampling)
        unet = denoiser(pipe, sampling.precision)
        predict = guided(unet, text, embed(pipe, [""]).expand_as(text), sampling.guidance)
        is_hidden = square(latents, self.settings.hidden)
        noise = normal(latents.shape, self.settings.seed, 0, "inside", latents.device)
        drawn = noise.to(latents.dtype) * scheduler.init_noise_sigma
        for timestep in timesteps:
            # One noise for all steps: the outside goes along one line from noise to x_0.
            outside = noised_to(pipe, latents, timestep, self.settings.seed, "outside")
            mixed = torch.where(is_hidden, drawn, outside)
            drawn = walk(predict, scheduler, mixed, [timestep])
        return torch.where(is_hidden, drawn, latents)


def square(latents: Tensor, share: float) -> Tensor:
    """The square in the middle of latents (n, c, h, w) as booleans (1, 1, h, w)."""
    import torch

    height, width = latents.shape[-2:]
    rows, columns = (max(1, round(share * side)) for side in (height, width))
    found = torch.zeros(1, 1, height, width, dtype=torch.bool, device=latents.device)
    top, left = (height - rows) // 2, (width - columns) // 2
    found[..., top : top + rows, left : left + columns] = True
    return found
