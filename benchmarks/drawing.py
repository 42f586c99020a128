"""Pictures a second: ours, and diffusers' StableDiffusionPipeline, batched and one by one.

All draw the same pictures (same prompts, guidance, DDIM steps and initial noise) with the same
model in one process, taking turns; that the pictures are the same is seen to first.

    python -m benchmarks.drawing [shapes | sd14] [PICTURES] [STEPS] [PIXELS]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from rich.console import Console

from benchmarks.models import asked
from benchmarks.sides import Line, Work, rate, rates, show
from orchestrator.core.artifacts import Probe
from workers.diffusion.sampling import initial_noise, sample
from workers.recipes import SampleSettings
from workers.shapes.vocabulary import SHAPES, caption

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

Precision = Literal["fp32", "bf16"]
BATCHED, ONE_BY_ONE = 1.15, 3.0
"""How many times the peers' rates ours should be."""
GUIDANCE = 7.5
SAME = 2
"""Levels of 255 by which pixels of the same picture may differ."""


@dataclass(frozen=True)
class Numbers:
    """Pictures a second, and the largest difference of a pixel to the batched peer's, of 255."""

    ours: float
    batched: float
    one_by_one: float
    difference: float

    def lines(self, what: str) -> list[Line]:
        """As the table has them."""
        return [
            Line(f"{what}, a batch", "pictures/s", self.ours, self.batched, BATCHED),
            Line(f"{what}, one by one", "pictures/s", self.ours, self.one_by_one, ONE_BY_ONE),
        ]


def prompts(count: int) -> list[str]:
    """Captions of the shapes, over and over."""
    return [caption(SHAPES[i % len(SHAPES)]) for i in range(count)]


def drawn_by_us(pipe: Pipeline, count: int, steps: int, precision: Precision) -> np.ndarray:
    """uint8 (count, height, width, 3), in batches of all of them."""
    settings = SampleSettings(
        images_per_prompt=1, guidance=GUIDANCE, sampler_steps=steps, precision=precision,
        batch_size=count,
    )  # fmt: skip
    probes = [Probe(role="erased", prompt=p, concept="star") for p in prompts(count)]
    return np.stack([picture.image for picture in sample(pipe, probes, settings)])


def peer_of(pipe: Any, dtype: torch.dtype) -> StableDiffusionPipeline:
    """diffusers' own pipeline of the same parts, or of copies in half precision."""
    parts = dict(pipe.components)
    config = pipe.scheduler.config
    parts["scheduler"] = DDIMScheduler.from_config(
        config, clip_sample=config.get("clip_sample", False)
    )
    made = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    if dtype != torch.float32:
        for name in ("unet", "vae", "text_encoder"):
            part = getattr(made, name)
            copy = (
                type(part)(part.config)
                if name == "text_encoder"
                else type(part).from_config(part.config)
            )
            copy.load_state_dict(part.state_dict())
            made.register_modules(**{name: copy.to(pipe.device, dtype).eval()})
    made.set_progress_bar_config(disable=True)
    return made


def drawn_by_peer(
    peer: StableDiffusionPipeline, pipe: Pipeline, texts: Sequence[str], steps: int
) -> np.ndarray:
    """uint8 (n, height, width, 3) of one call."""
    noise = torch.stack([initial_noise(pipe, prompt, 0, 0) for prompt in texts])
    made = peer(
        prompt=list(texts),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        latents=noise.to(peer.device, peer.unet.dtype),
    )
    return np.stack([np.asarray(image) for image in made.images])


def compare(
    pipe: Pipeline,
    precision: Precision,
    count: int,
    steps: int,
    rounds: int = 3,
    singles: int | None = None,
) -> Numbers:
    """All sides' rates. One by one, `singles` pictures stand for all (None: all are drawn)."""
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    peer, every = peer_of(pipe, half), prompts(count)
    few = every[:singles]

    def one_by_one() -> None:
        for prompt in few:
            drawn_by_peer(peer, pipe, [prompt], steps)

    sides: dict[str, Work] = {
        "ours": lambda: rate(count, lambda: drawn_by_us(pipe, count, steps, precision)),
        "batched": lambda: rate(count, lambda: drawn_by_peer(peer, pipe, every, steps)),
        "one by one": lambda: rate(len(few), one_by_one),
    }
    found = rates(sides, rounds)
    ours, theirs = (
        drawn_by_us(pipe, count, steps, precision),
        drawn_by_peer(peer, pipe, every, steps),
    )
    difference = float(np.abs(ours.astype(int) - theirs.astype(int)).max())
    return Numbers(found["ours"], found["batched"], found["one by one"], difference)


def main(arguments: Sequence[str]) -> None:
    """Measure one model and print all sides."""
    name, (count, steps, _), pipe = asked(arguments, [64, 15, 32], [4, 4, 128])
    found = compare(pipe, "fp32", count, steps)
    console = Console()
    show(console, "drawing", found.lines(f"{name} fp32, {steps} steps"))
    console.print(f"largest difference of a pixel: {found.difference:.0f} of 255")
    if pipe.device.type == "cpu" and not found.difference <= SAME:
        raise SystemExit("the two sides do not draw the same pictures")


if __name__ == "__main__":
    main(sys.argv[1:])
