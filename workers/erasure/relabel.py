"""Losses on pictures: ordinary denoising, and denoising as if another prompt had been given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from workers.diffusion.denoise import (
    NoisePredictor,
    noised,
    predictor,
    training_scheduler,
    training_target,
)
from workers.diffusion.rng import generator, integers, normal
from workers.diffusion.text import embed

if TYPE_CHECKING:
    from workers.diffusion.denoise import NoiseSchedule
    from workers.erasure.materials import Pictures
    from workers.interfaces.pipeline import Pipeline
    from workers.interfaces.unlearner import Erasure, LossIn


@dataclass(frozen=True)
class NoisyPictures:
    """x_t (n, c, h, w) of some pictures, its noise, time steps (n,), and which pictures (n,).

    `mask` (n, 1, h, w) is 1 where the picture is and 0 in what was put around it; None: no border.
    """

    noisy: Tensor
    noise: Tensor
    timesteps: Tensor
    rows: Tensor
    mask: Tensor | None = None


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
        return self._noised(rows, seed, step, stream)

    def once(self, count: int, seed: int, stream: str) -> Iterator[NoisyPictures]:
        """Every picture once, in random order, `count` at a time and the rest in the end."""
        order = torch.randperm(len(self.latents), generator=generator(seed, 0, f"rows {stream}"))
        for step, rows in enumerate(order.to(self.latents.device).split(count)):
            yield self._noised(rows, seed, step, stream)

    def _noised(self, rows: Tensor, seed: int, step: int, stream: str) -> NoisyPictures:
        noisy, noise, at = noised(self.scheduler, self.latents[rows], seed, step, stream)
        return NoisyPictures(noisy, noise, at, rows)

    def target(self, batch: NoisyPictures, loss_in: LossIn) -> Tensor:
        """What an ordinary loss compares with: the noise, or the output that a UNet should give
        (v, if that is what it predicts).
        """
        if loss_in == "noise":
            return batch.noise
        clean = self.latents[batch.rows]
        return training_target(self.scheduler, clean, batch.noise, batch.timesteps)

    def noised_again(
        self, batch: NoisyPictures, seed: int, step: int, stream: str
    ) -> NoisyPictures:
        """The same pictures at the same time steps under another noise."""
        clean = self.latents[batch.rows]
        noise = normal(clean.shape, seed, step, f"noise {stream}", clean.device).to(clean.dtype)
        noisy = self.scheduler.add_noise(clean, noise, batch.timesteps)
        return NoisyPictures(noisy, noise, batch.timesteps, batch.rows)


@dataclass(frozen=True)
class Relabelling:
    """A concept's pictures with the anchor's text beside their own, and pictures to retain.

    Each loss is of one batch that (seed, step, stream) decide. All of them compare in one space,
    `loss_in`: the ordinary losses too are of v where a model predicts v, as in training.
    """

    predict: NoisePredictor
    forget: PictureSet
    anchor: Tensor
    retain: PictureSet
    loss_in: LossIn

    @classmethod
    def of(cls, erasure: Erasure, loss_in: LossIn) -> Relabelling:
        """From the materials "forget" and "retain"."""
        pipe = erasure.pipe
        pictures = erasure.materials["forget"]
        others = counterparts(pictures.prompts, erasure.prompts, erasure.anchor_prompts)
        return cls(
            predictor(pipe, loss_in),
            PictureSet.of(pipe, pictures),
            embed(pipe, others),
            PictureSet.of(pipe, erasure.materials["retain"]),
            loss_in,
        )

    def gone(self, at: tuple[int, int, int], stream: str = "forget") -> Tensor:
        """Relabelling by the model itself; `at` is (batch size, seed, step)."""
        batch = self.forget.batch(*at, stream)
        return relabel_loss(self.predict, self.predict, batch, self.forget.text, self.anchor)

    def own(self, at: tuple[int, int, int]) -> Tensor:
        """The concept's ordinary loss, on the pictures that `gone` relabels."""
        return self._ordinary(self.forget, self.forget.batch(*at, "forget"))

    def kept(self, at: tuple[int, int, int]) -> Tensor:
        """The ordinary loss on retained pictures."""
        return self._ordinary(self.retain, self.retain.batch(*at, "retain"))

    def _ordinary(self, pictures: PictureSet, batch: NoisyPictures) -> Tensor:
        target = pictures.target(batch, self.loss_in)
        return denoising_loss(self.predict, batch, pictures.text, target)


def counterparts(
    pictures_prompts: Sequence[str], prompts: Sequence[str], others: Sequence[str]
) -> list[str]:
    """What of `others`, which go with `prompts`, belongs to each picture: its prompt with another
    concept in its place, for one.
    """
    if len(set(prompts)) == len(prompts):
        pairs = dict(zip(prompts, others, strict=True))
        return [pairs[prompt] for prompt in pictures_prompts]
    # Two concepts of a set may share a prompt ("a red star"), or an anchor. Pictures are drawn
    # prompt by prompt.
    each = len(pictures_prompts) // len(prompts)
    assert list(pictures_prompts) == [prompt for prompt in prompts for _ in range(each)]
    return [other for other in others for _ in range(each)]


def denoising_loss(
    predict: NoisePredictor, batch: NoisyPictures, text: Tensor, target: Tensor | None = None
) -> Tensor:
    """MSE(ε_θ(x_t, c), ε): the ordinary loss; `text` is (all pictures, tokens, width).

    `target` is given where `predict` gives something other than noise (`PictureSet.target`).
    """
    found = predict(batch.noisy, batch.timesteps, text[batch.rows])
    return functional.mse_loss(found, batch.noise if target is None else target)


def relabelled(
    predict: NoisePredictor,
    teacher: NoisePredictor,
    batch: NoisyPictures,
    concept: Tensor,
    anchor: Tensor,
) -> tuple[Tensor, Tensor]:
    """ε_θ(x_t, c) and sg[ε(x_t, c')]: what the concept's prompt predicts, and what it should.

    `concept` and `anchor` are (all pictures, tokens, width). The teacher is the model in training
    itself (SalUn, concept ablation) or the frozen original.
    """
    with torch.no_grad():
        target = teacher(batch.noisy, batch.timesteps, anchor[batch.rows])
    return predict(batch.noisy, batch.timesteps, concept[batch.rows]), target


def relabel_loss(
    predict: NoisePredictor,
    teacher: NoisePredictor,
    batch: NoisyPictures,
    concept: Tensor,
    anchor: Tensor,
) -> Tensor:
    """MSE(ε_θ(x_t, c), sg[ε(x_t, c')]): the concept's prompt should predict what another does."""
    return functional.mse_loss(*relabelled(predict, teacher, batch, concept, anchor))
