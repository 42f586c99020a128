"""What of a data set is trained on at a step: which examples, and how their pictures are shown.

All is drawn by (seed, step, micro-batch), so that no step hangs on those before it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from workers.diffusion.latents import IMAGES_PER_PASS, encode_images, encode_pixels
from workers.diffusion.rng import generator
from workers.interfaces.dataset import Examples
from workers.recipes import FinetuneSettings
from workers.runtime.parts import part_size

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


class Pictures:
    """A data set's pictures as latents: as they are, mirrored or cut at random.

    They are encoded once, also mirrored if that may be asked for, and at every step if they are
    cut; as the mode of the autoencoder's posterior, which needs no random numbers.
    """

    def __init__(
        self, pipe: Pipeline, settings: FinetuneSettings, examples: Examples, seed: int
    ) -> None:
        self.pipe, self.settings, self.seed, self._examples = pipe, settings, seed, examples
        self.count = len(examples)
        self.plain = self.mirrored = torch.empty(0)
        if settings.random_crop == 1:
            self.plain = encode_images(pipe, examples)
            if settings.random_flip:
                self.mirrored = encode_images(pipe, examples, mirrored=True)

    def chosen(self, step: int, micro: int) -> Tensor:
        """The numbers (batch,) of a micro-batch's examples, on the CPU: every one once an epoch."""
        s = self.settings
        start = (step * s.accumulation + micro) * s.batch_size
        places = range(start, start + s.batch_size)
        count = self.count
        return torch.tensor([_order(self.seed, p // count, count)[p % count] for p in places])

    def latents(self, chosen: Tensor, step: int, micro: int) -> Tensor:
        """Latents (batch, c, h, w) of examples as they are shown at a step."""
        flipped = None
        if self.settings.random_flip:
            draw = generator(self.seed, step, f"flip {micro}")
            flipped = torch.rand(len(chosen), generator=draw) < 0.5
        if self.settings.random_crop < 1:
            return self._cut(chosen, flipped, step, micro)
        rows = chosen.to(self.plain.device, non_blocking=True)
        if flipped is None:
            return self.plain[rows]
        where = flipped.to(rows.device).view(-1, 1, 1, 1)
        return torch.where(where, self.mirrored[rows], self.plain[rows])

    @torch.no_grad()
    def _cut(self, chosen: Tensor, flipped: Tensor | None, step: int, micro: int) -> Tensor:
        """Of squares at random places, resized to the whole picture's size."""
        pipe = self.pipe
        images = self._examples.images[chosen.numpy()]
        height, width = images.shape[1:3]
        side = max(1, round(self.settings.random_crop * min(height, width)))
        draw = generator(self.seed, step, f"crop {micro}")
        tops = torch.randint(height - side + 1, (len(images),), generator=draw).tolist()
        lefts = torch.randint(width - side + 1, (len(images),), generator=draw).tolist()
        cuts = []
        for row, (image, top, left) in enumerate(zip(images, tops, lefts, strict=True)):
            pixels = torch.from_numpy(image[top : top + side, left : left + side])
            pixels = pixels.permute(2, 0, 1)[None] / 127.5 - 1
            if flipped is not None and flipped[row]:
                pixels = pixels.flip(-1)
            cuts.append(
                functional.interpolate(
                    pixels, (height, width), mode="bilinear", antialias=True, align_corners=False
                )
            )
        signed = torch.cat(cuts).to(pipe.device, pipe.vae.dtype)
        return torch.cat([encode_pixels(pipe, p) for p in signed.split(part_size(IMAGES_PER_PASS))])


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of an epoch: every example once."""
    return tuple(torch.randperm(count, generator=generator(seed, epoch, "order")).tolist())
