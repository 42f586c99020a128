"""Fine-tuning steps a second: ours, and a loop as diffusers' text-to-image example has it.

Both train the same model on the same pictures with AdamW, in one process, taking turns. The example
decodes and normalises each batch's pictures, encodes them and their captions, draws noise on the
device, and reads its loss at every step; ours encodes once, before the first step (that time is
said apart). With the same order, noise and time steps the two give the same losses, which is seen
to first.

    python -m benchmarks.finetuning [shapes | sd14] [fp32 | bf16] [BATCH] [STEPS] [PIXELS]
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import asked, pictures
from benchmarks.sides import Line, rate, rates, show
from workers.diffusion.denoise import training_scheduler, training_target
from workers.diffusion.rng import integers, normal
from workers.diffusion.text import token_ids
from workers.interfaces.dataset import Examples
from workers.recipes import FinetuneSettings
from workers.training.batches import Pictures
from workers.training.finetune import Trainer

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

Precision = Literal["fp32", "bf16"]
TARGET = 1.5
SEED = 0
PICTURES = 64
SAME = 1e-3
"""Relative difference of two losses that are the same but for rounding, in fp32."""


@dataclass(frozen=True)
class Numbers:
    """What fine-tuning one model gave: steps a second, and the largest relative difference of the
    two sides' losses.
    """

    ours: float
    peer: float
    loss_difference: float
    encoding_s: float

    def line(self, what: str) -> Line:
        """As the table has it."""
        return Line(what, "steps/s", self.ours, self.peer, TARGET)


class Example:
    """The peer: a step as the example takes it, from pictures that are encoded files.

    `noise_of` gives a step's noise and time steps where the two sides are to draw the same.
    """

    def __init__(
        self,
        pipe: Pipeline,
        settings: FinetuneSettings,
        examples: Examples,
        order: Callable[[int], Tensor],
        noise_of: Callable[[int, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.pipe, self.settings, self.noise_of, self.order = pipe, settings, noise_of, order
        self.files = [_png(image) for image in examples.images]
        self.captions = examples.captions
        self.half = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        self.scheduler = training_scheduler(pipe)
        pipe.unet.requires_grad_(True)
        self.parameters = list(pipe.unet.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.losses: list[float] = []

    def step(self, number: int) -> None:
        """One optimiser step."""
        pipe, device, rows = self.pipe, self.pipe.device, self.order(number).tolist()
        pixels = torch.stack([_normalised(self.files[row]) for row in rows]).to(device, self.half)
        ids = token_ids(pipe, [self.captions[row] for row in rows])
        with torch.no_grad(), torch.autocast(device.type, self.half, enabled=self.is_half):
            latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
            text = pipe.text_encoder(ids)[0]
        if self.noise_of is None:
            noise = torch.randn_like(latents)
            high = self.scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, high, (len(rows),), device=device)
        else:
            noise, timesteps = self.noise_of(number, latents)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = training_target(self.scheduler, latents, noise, timesteps)
        with torch.autocast(device.type, self.half, enabled=self.is_half):
            found = pipe.unet(noisy, timesteps, encoder_hidden_states=text).sample
        loss = functional.mse_loss(found.float(), target.float(), reduction="mean")
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    @property
    def is_half(self) -> bool:
        """Whether it computes under autocast."""
        return self.half is torch.bfloat16


def compare(
    pipe: Pipeline,
    precision: Precision,
    batch: int,
    steps: int,
    rounds: int = 3,
    looks_at_losses: bool = True,
) -> Numbers:
    """Both sides' rates on a pipeline, which is trained. One side's state is there at a time."""
    examples = pictures(pipe, PICTURES)
    settings = FinetuneSettings(batch_size=batch, steps=10**9, precision=precision)
    encoding_s = math.nan
    order = Pictures(pipe, settings, examples, SEED)

    def chosen(step: int) -> Tensor:
        return order.chosen(step, 0)

    def ours() -> float:
        nonlocal encoding_s
        encoding_s = 1 / rate(1, lambda: Pictures(pipe, settings, examples, SEED))
        trainer = Trainer(pipe, settings, examples, SEED)
        trainer.train_to(1)
        return rate(steps, lambda: trainer.train_to(1 + steps))

    def peer() -> float:
        example = Example(pipe, settings, examples, chosen)
        example.step(0)
        return rate(steps, lambda: [example.step(number) for number in range(1, 1 + steps)])

    difference = math.nan
    if looks_at_losses:
        difference = _difference(pipe, settings, examples, chosen, steps)
    found = rates({"ours": ours, "peer": peer}, rounds)
    pipe.unet.requires_grad_(False)
    return Numbers(found["ours"], found["peer"], difference, encoding_s)


def _difference(
    pipe: Pipeline,
    settings: FinetuneSettings,
    examples: Examples,
    order: Callable[[int], Tensor],
    steps: int,
) -> float:
    """The largest relative difference of the losses when both draw the same."""
    with put_back(pipe):
        trainer = Trainer(pipe, settings, examples, SEED)
        trainer.train_to(steps)
    with put_back(pipe):
        example = Example(pipe, settings, examples, order, _ours)
        for number in range(steps):
            example.step(number)
    pairs = zip(trainer.losses, example.losses, strict=True)
    return max(abs(ours - theirs) / theirs for (_, ours), theirs in pairs)


def _ours(step: int, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The noise and time steps of a step as our trainer draws them."""
    noise = normal(latents.shape, SEED, step, "noise 0", latents.device)
    times = integers(1000, len(latents), SEED, step, "timesteps 0", latents.device)
    return noise, times


@contextmanager
def put_back(pipe: Pipeline) -> Iterator[None]:
    """The UNet's weights are afterwards what they were; that takes a copy on the same device."""
    before = [value.detach().clone() for value in pipe.unet.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(pipe.unet.parameters(), before, strict=True):
                value.copy_(old)


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _normalised(file: bytes) -> Tensor:
    """(3, height, width) in [-1, 1]."""
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)


def main(arguments: Sequence[str]) -> None:
    """Measure one model and print both sides."""
    precision: Precision = "bf16" if "bf16" in arguments else "fp32"
    name, (batch, steps, _), pipe = asked(arguments, [16, 20, 32], [1, 2, 128])
    # Of a large model a copy, gradients and moments at once are more than a laptop has.
    looks = name == "shapes" or pipe.device.type != "cpu"
    found = compare(pipe, precision, batch, steps, looks_at_losses=looks)
    console = Console()
    show(console, "fine-tuning", [found.line(f"{name} {precision}, full weights, batch {batch}")])
    console.print(f"encoding {PICTURES} pictures once, before ours: {found.encoding_s:.2f} s")
    if looks:
        console.print(f"largest relative difference of the losses: {found.loss_difference:.1e}")
    if precision == "fp32" and pipe.device.type == "cpu" and found.loss_difference > SAME:
        raise SystemExit("the two sides do not train the same model")


if __name__ == "__main__":
    main(sys.argv[1:])
