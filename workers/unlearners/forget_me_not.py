"""Forget-Me-Not: no part of the picture is to look at the concept's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import PictureSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    from torch import Tensor


class ForgetMeNotSettings(PictureSettings):
    """Few steps: the loss has nothing that would hold the model together.

    Tuned to the shapes base: sweeps/tuning/forget_me_not.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset(
            {"learning_rate": 2e-6, "iterations": 35, "batch_size": 1, "group": "full"}, "ours", ""
        ),
        "unlearncanvas": Preset({
            "learning_rate": 2e-5, "iterations": 100, "batch_size": 1, "group": "xattn",
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(35, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="pictures per step")
    group: Literal["full", "xattn"] = Field("xattn", description="what is trained")


class ForgetMeNot(PictureUnlearner):
    """Minimise the cross-attention to the concept's tokens on its own pictures.

    Forget-Me-Not (Zhang et al., CVPR 2024 workshop, eq. 4): the 2-norm of the attention
    probabilities at the concept's tokens, summed over all attn2 layers, on noised pictures of the
    concept. There is no diffusion loss, so it collapses easily, which is known, and why there are
    so few steps.
    """

    name = "forget_me_not"
    version = 1
    uses = frozenset()
    paper = "Zhang et al., CVPR 2024 workshop"
    Settings = ForgetMeNotSettings
    settings: ForgetMeNotSettings

    def passes(self) -> int:
        """One trained pass."""
        return self.settings.iterations * 3 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import subject_words
        from workers.erasure.relabel import PictureSet
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        predict = noise_predictor(pipe)
        pictures = erasure.materials["forget"]
        forget = PictureSet.of(pipe, pictures)
        words = subject_words(pipe, pictures.prompts, erasure.concept)

        def loss(step: int) -> Tensor:
            batch = forget.batch(s.batch_size, erasure.seed, step, "forget")
            predict(batch.noisy, batch.timesteps, forget.text[batch.rows])
            return attention_norm(maps, words[batch.rows])

        # For the whole training: gradient checkpointing runs a forward pass again on the way back.
        with recorded(pipe.unet) as maps:
            return train_weights(erasure, s, parameters, from_loss(loss), weight_decay=1e-2)


def attention_norm(maps: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Σ over layers of ‖attention to the words‖₂; maps (n, heads, pixels, tokens) by layer, words
    bool (n, tokens).
    """
    import torch

    from workers.diffusion.attention import to_words
    from workers.diffusion.denoise import at_least_fp32

    return torch.stack([at_least_fp32(p).norm() for p in to_words(maps, words).values()]).sum()
