"""Pictures to latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.interfaces.dataset import Examples
from workers.runtime.parts import part_size
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


IMAGES_PER_PASS = 32


@torch.no_grad()
def encode_images(pipe: Pipeline, examples: Examples) -> Tensor:
    """Pictures uint8 (n, height, width, 3) -> scaled latents (n, c, h, w): the posterior's mode."""
    latents, count, size = [], len(examples.images), part_size(IMAGES_PER_PASS)
    for start in range(0, count, size):
        pixels = torch.from_numpy(examples.images[start : start + size])
        signed = pixels.to(pipe.device, pipe.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        latents.append(pipe.vae.encode(signed).latent_dist.mode() * pipe.vae.config.scaling_factor)
        tell(min(start + size, count), count)
    return torch.cat(latents)
