"""Losses on pictures: ordinary denoising, and denoising as if another prompt had been given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from workers.diffusion.denoise import NoisePredictor, noise_predictor, noised, training_scheduler
from workers.diffusion.rng import integers
from workers.diffusion.text import embed

if TYPE_CHECKING:
    from workers.diffusion.denoise import NoiseSchedule
    from workers.erasure.materials import Pictures
    from workers.interfaces.pipeline import Pipeline
    from workers.interfaces.unlearner import Erasure


@dataclass(frozen=True)
class NoisyPictures:
    """x_t (n, c, h, w) of some pictures, its noise, time steps (n,), and which pictures (n,)."""

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    rows: Tensor


@dataclass(frozen=True)
class PictureSet:
    """Pictures ready for training: latents (n, c, h, w) and their prompts' embeddings."""

    latents: Tensor
    text: Tensor
    scheduler: NoiseSchedule

    @classmethod
    def of(cls, pipe: Pipeline, pictures: Pictures) -> PictureSet:
        """On the pipeline's device and noise schedule."""
        text = embed(pipe, pictures.prompts)
        return cls(pictures.latents.to(pipe.device), text, training_scheduler(pipe))

    def batch(self, count: int, seed: int, step: int, stream: str) -> NoisyPictures:
        """`count` pictures, drawn with replacement and noised at uniform time steps."""
        device = self.latents.device
        rows = integers(len(self.latents), count, seed, step, f"rows {stream}", device)
        noisy, noise, at = noised(self.scheduler, self.latents[rows], seed, step, stream)
        return NoisyPictures(noisy, noise, at, rows)


@dataclass(frozen=True)
class Relabelling:
    """A concept's pictures with the anchor's text beside their own, and pictures to retain.

    Each loss is of one batch that (seed, step, stream) decide.
    """

    predict: NoisePredictor
    forget: PictureSet
    anchor: Tensor
    retain: PictureSet

    @classmethod
    def of(cls, erasure: Erasure) -> Relabelling:
        """From the materials "forget" and "retain"."""
        pipe = erasure.pipe
        pictures = erasure.materials["forget"]
        others = counterparts(pictures.prompts, erasure.prompts, erasure.anchor_prompts)
        return cls(
            noise_predictor(pipe),
            PictureSet.of(pipe, pictures),
            embed(pipe, others),
            PictureSet.of(pipe, erasure.materials["retain"]),
        )

    def gone(self, at: tuple[int, int, int], stream: str = "forget") -> Tensor:
        """Relabelling by the model itself; `at` is (batch size, seed, step)."""
        batch = self.forget.batch(*at, stream)
        return relabel_loss(self.predict, self.predict, batch, self.forget.text, self.anchor)

    def own(self, at: tuple[int, int, int]) -> Tensor:
        """The concept's ordinary loss, on the pictures that `gone` relabels."""
        return denoising_loss(self.predict, self.forget.batch(*at, "forget"), self.forget.text)

    def kept(self, at: tuple[int, int, int]) -> Tensor:
        """The ordinary loss on retained pictures."""
        return denoising_loss(self.predict, self.retain.batch(*at, "retain"), self.retain.text)


def counterparts(
    pictures_prompts: Sequence[str], prompts: Sequence[str], others: Sequence[str]
) -> list[str]:
    """Each picture's prompt with another concept in its place: `others` goes with `prompts`."""
    pairs = dict(zip(prompts, others, strict=True))
    return [pairs[prompt] for prompt in pictures_prompts]


def denoising_loss(predict: NoisePredictor, batch: NoisyPictures, text: Tensor) -> Tensor:
    """MSE(ε_θ(x_t, c), ε): the ordinary loss; `text` is (all pictures, tokens, width)."""
    return functional.mse_loss(predict(batch.noisy, batch.timesteps, text[batch.rows]), batch.noise)


def relabel_loss(
    predict: NoisePredictor,
    teacher: NoisePredictor,
    batch: NoisyPictures,
    concept: Tensor,
    anchor: Tensor,
) -> Tensor:
    """MSE(ε_θ(x_t, c), sg[ε(x_t, c')]): the concept's prompt should predict what another does.

    `concept` and `anchor` are (all pictures, tokens, width). The teacher is the model in training
    itself (SalUn, concept ablation) or the frozen original.
    """
    with torch.no_grad():
        target = teacher(batch.noisy, batch.timesteps, anchor[batch.rows])
    return functional.mse_loss(predict(batch.noisy, batch.timesteps, concept[batch.rows]), target)
