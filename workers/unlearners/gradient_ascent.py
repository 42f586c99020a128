"""The plainest baseline: climb the concept's own loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.erasure.picture_method import PictureSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned


class GradientAscentSettings(PictureSettings):
    """How far to climb, and how strongly to hold on to the rest.

    Tuned to the shapes base: sweeps/tuning/gradient_ascent.yaml.
    """

    iterations: int = Field(50, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate")
    retain_weight: float = Field(3.0, ge=0, description="weight of the loss on retained pictures")
    group: Literal["full", "xattn", "noxattn"] = Field("xattn", description="what is trained")


class GradientAscent(PictureUnlearner):
    """Climb the denoising loss on the concept's pictures while training on retained ones.

    -MSE(ε_θ(x_t, c), ε) + w · MSE on retained pictures: the baseline of machine unlearning (Thudi
    et al., EuroS&P 2022) with the gradient difference of Liu et al. (CoLLAs 2022). Nothing bounds
    the first term: too many iterations destroy the model.
    """

    name = "gradient_ascent"
    version = 1
    joint = True
    jointly = "all concepts' pictures are one forget set"
    paper = "Thudi et al., EuroS&P 2022 (baseline)"
    Settings = GradientAscentSettings
    settings: GradientAscentSettings

    def passes(self) -> int:
        """Two trained passes."""
        return self.settings.iterations * 6 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from torch import Tensor

        from workers.diffusion.denoise import noise_predictor
        from workers.erasure.relabel import PictureSet, denoising_loss
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        predict = noise_predictor(pipe)
        forget = PictureSet.of(pipe, erasure.materials["forget"])
        retain = PictureSet.of(pipe, erasure.materials["retain"])

        def loss(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)
            gone = denoising_loss(predict, forget.batch(*at, "forget"), forget.text)
            kept = denoising_loss(predict, retain.batch(*at, "retain"), retain.text)
            return s.retain_weight * kept - gone

        return train_weights(erasure, s, parameters, from_loss(loss), weight_decay=0.0)
