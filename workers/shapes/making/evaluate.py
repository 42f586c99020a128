"""Measure what a pipeline draws: the judge's verdict on the images of known prompts."""

from collections.abc import Callable

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from workers.shapes.judge import NONE, Judge
from workers.shapes.vocabulary import COLORS, FILLS, NOVEL_SHAPES, SHAPES, caption

GUIDANCE = 3.0
INFERENCE_STEPS = 20
BATCH = 64
Accuracies = dict[str, float]


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int) -> Tensor:
    """Draw one image for each prompt; return floats (n, 3, 32, 32) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images = [
        pipeline(
            prompts[start : start + BATCH],
            guidance_scale=GUIDANCE,
            num_inference_steps=INFERENCE_STEPS,
            generator=generator,
            output_type="pt",
        ).images
        for start in range(0, len(prompts), BATCH)
    ]
    return torch.cat(images)


def measure(
    pipeline: StableDiffusionPipeline, judge: Judge, images_per_word: int, seed: int
) -> dict[str, Accuracies]:
    """Return, for each head of the judge and for the novel words, each word's accuracy: the share
    of images whose most probable class is the word, and that show a shape.
    """
    shapes, colors, fills = shape_prompts, color_prompts, fill_prompts
    rows: dict[str, tuple[str, tuple[str, ...], Callable[[str, int], list[str]]]] = {
        "shape": ("shape", SHAPES, shapes),
        "color": ("color", COLORS, colors),
        "fill": ("fill", FILLS, fills),
        "novel": ("shape", NOVEL_SHAPES, shapes),
    }
    found: dict[str, Accuracies] = {row: {} for row in rows}
    for row, (head, words, prompts) in rows.items():
        for word in words:
            named = judge.names(generate(pipeline, prompts(word, images_per_word), seed))
            verdicts = list(zip(named[head], named["shape"], strict=True))
            right = sum(verdict == word and shape != NONE for verdict, shape in verdicts)
            found[row][word] = right / len(verdicts)
    return found


def shape_prompts(shape: str, count: int) -> list[str]:
    """Return "a star", "a red star", "a star", "a green star" and so on."""
    colors = [word for color in COLORS for word in (None, color)]
    return [caption(shape, colors[n % len(colors)]) for n in range(count)]


def color_prompts(color: str, count: int) -> list[str]:
    """Return "a red shape", "a red circle", "a red square" and so on."""
    shapes = (None, *SHAPES)
    return [caption(shapes[n % len(shapes)], color) for n in range(count)]


def fill_prompts(fill: str, count: int) -> list[str]:
    """Return "a striped circle", "a striped square" and so on."""
    return [caption(SHAPES[n % len(SHAPES)], None, fill) for n in range(count)]
