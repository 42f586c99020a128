"""Pictures with their labels, as tensors, for training and for measuring."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.shapes.render import random_scene, render
from workers.shapes.vocabulary import ALL_SHAPES, COLORS, FILLS, SHAPES


@dataclass(frozen=True)
class LabelledPictures:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n, 3): indices of shape, colour and fill.

    Shapes are numbered as in `ALL_SHAPES`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_pictures(count: int, seed: int, shapes: tuple[str, ...] = SHAPES) -> LabelledPictures:
    """Render `count` random scenes with every shape equally often."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, shape=shapes[n % len(shapes)]) for n in range(count)]
    images = np.stack([render(scene) for scene in scenes])
    labels = torch.tensor(
        [(ALL_SHAPES.index(s.shape), COLORS.index(s.color), FILLS.index(s.fill)) for s in scenes]
    )
    return LabelledPictures(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 images to floats in [0, 1]."""
    return images.float() / 255


def to_signed(images: Tensor) -> Tensor:
    """Map uint8 images to floats in [-1, 1], as the autoencoder takes them."""
    return images.float() / 127.5 - 1


def endless_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches (size,) of indices below `count`, without end and in shuffled epochs."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)
