"""The models that benchmarks run on, and pictures to train them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from workers.bases.shapes import Shapes
from workers.interfaces.dataset import Examples
from workers.shapes.vocabulary import SHAPES, caption

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

Name = Literal["shapes", "sd14"]


def new_pipeline(name: Name, device: str, size_px: int | None = None) -> Pipeline:
    """The bundled model, or Stable Diffusion 1.4's architecture with random weights, fp32.

    `size_px` is the side of the pictures that it draws, if not its own.
    """
    if name == "shapes":
        return Shapes(Shapes.Settings()).load(device)
    from tests.full_size.random_pipeline import build

    with torch.device(device):
        pipe = build("sd14")
    if size_px is not None:
        pipe.unet.register_to_config(sample_size=size_px // pipe.vae_scale_factor)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return cast("Pipeline", pipe)


def asked(
    arguments: Sequence[str], small: Sequence[int], large: Sequence[int]
) -> tuple[Name, list[int], Pipeline]:
    """What a command line asks for: a model, numbers in their order (those that are left out are
    the model's usual ones, the last of them its pictures' side), and the model itself.
    """
    name: Name = "sd14" if "sd14" in arguments else "shapes"
    usual = large if name == "sd14" else small
    given = [int(text) for text in arguments if text.isdigit()]
    numbers = [*given, *usual[len(given) :]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # as the workers do
    side = numbers[-1] if name == "sd14" else None
    return name, numbers, new_pipeline(name, device, side)


def size_px(pipe: Pipeline) -> int:
    """The side of the pictures that a model draws."""
    side = pipe.unet.config.sample_size
    assert isinstance(side, int)
    return side * pipe.vae_scale_factor


def pictures(pipe: Pipeline, count: int) -> Examples:
    """Coarse noise with captions: what a picture shows makes no step of training longer, but fine
    noise takes longer to decode than photographs do.
    """
    side = size_px(pipe)
    coarse = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    drawn = coarse.repeat(side // 16, axis=1).repeat(side // 16, axis=2)
    captions = tuple(caption(SHAPES[i % len(SHAPES)]) for i in range(count))
    return Examples(drawn, captions)
