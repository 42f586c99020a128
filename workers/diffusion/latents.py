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
def encode_images(pipe: Pipeline, examples: Examples, mirrored: bool = False) -> Tensor:
    """Pictures uint8 (n, height, width, 3) -> scaled latents (n, c, h, w): the posterior's mode.

    `mirrored` exchanges left and right first: a mirrored picture's latents are not the picture's
    latents mirrored.
    """
    latents, count, size = [], len(examples.images), part_size(IMAGES_PER_PASS)
    for start in range(0, count, size):
        pixels = torch.from_numpy(examples.images[start : start + size])
        signed = pixels.to(pipe.device, pipe.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        latents.append(encode_pixels(pipe, signed.flip(-1) if mirrored else signed))
        tell(min(start + size, count), count)
    return torch.cat(latents)


@torch.no_grad()
def encode_pixels(pipe: Pipeline, signed: Tensor) -> Tensor:
    """The same of pictures (n, 3, height, width) in [-1, 1], in one pass."""
    return pipe.vae.encode(signed).latent_dist.mode() * pipe.vae.config.scaling_factor
