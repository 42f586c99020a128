"""Forget-Me-Not: no part of the picture is to look at the concept's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import PictureSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Prompts, Unlearned, trained_on

if TYPE_CHECKING:
    from torch import Tensor


class ForgetMeNotSettings(PictureSettings):
    """Few steps: the loss has nothing that would hold the model together.

    Tuned to the shapes base: sweeps/tuning/forget_me_not.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 2e-6, "iterations": 35, "batch_size": 1, "group": "full",
            "tokens": "words_and_end", "prompts": ["a photo of {concept}"],
        }, "ours", "Forget-Me-Not's rate, steps, tokens and prompt on drawn pictures; released: "
            "the concept as tokens of a textual inversion, a few real pictures, on SD 2.1-base"),
        "unlearncanvas": Preset({
            "learning_rate": 2e-5, "iterations": 100, "batch_size": 1, "group": "xattn",
            "tokens": "words_and_end", "prompts": "base",
        }, "ours", "UnlearnCanvas' rate, steps and group on drawn pictures of the base's prompts"),
    }  # fmt: skip

    prompts: Prompts = trained_on("base")
    iterations: int = Field(35, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="pictures per step")
    group: Literal["full", "xattn"] = Field("xattn", description="what is trained")
    tokens: Literal["words", "words_and_end"] = Field(
        "words_and_end",
        description="attention to what: the concept's words (paper), or to every end token too, "
        "with which Stable Diffusion 1 pads (released)",
    )
    clip_norm: float = Field(
        1.0, gt=0, description="the largest norm of attn2's gradients; none is clipped of a whole "
        "UNet, where the released code's clip has no effect"
    )  # fmt: skip


class ForgetMeNot(PictureUnlearner):
    """Minimise the cross-attention to the concept's tokens on its own pictures.

    Forget-Me-Not (Zhang et al., CVPR 2024 workshop, eq. 4): the one 2-norm of the attention
    probabilities at the concept's tokens over all attn2 layers, heads, pixels and pictures, on
    noised pictures of the concept. There is no diffusion loss, so it collapses easily, which is
    known, and why there are so few steps. The released code begins with a textual inversion of the
    concept, whose tokens then stand for it; here the concept's own words do.
    """

    name = "forget_me_not"
    version = 2
    uses = frozenset()
    joint = True
    jointly = "each picture's own concept, of all concepts' pictures together, as published"
    paper = "Zhang et al., CVPR 2024 workshop"
    golden = "tokens, norm and three steps of either group; no textual inversion"
    Settings = ForgetMeNotSettings
    settings: ForgetMeNotSettings

    def passes(self) -> int:
        """One trained pass."""
        return self.settings.iterations * 3 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import end_tokens, subject_words
        from workers.erasure.relabel import PictureSet, counterparts
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        predict = noise_predictor(pipe)
        pictures = erasure.materials["forget"]
        forget = PictureSet.of(pipe, pictures)
        concepts = counterparts(pictures.prompts, erasure.prompts, erasure.subjects)
        words = subject_words(pipe, pictures.prompts, concepts)
        if s.tokens == "words_and_end":
            words = words | end_tokens(pipe, pictures.prompts)

        def loss(step: int) -> Tensor:
            batch = forget.batch(s.batch_size, erasure.seed, step, "forget")
            predict(batch.noisy, batch.timesteps, forget.text[batch.rows])
            norm: Tensor = attention_norms(maps, words[batch.rows]).norm()
            return norm

        # For the whole training: gradient checkpointing runs a forward pass again on the way back.
        with recorded(pipe.unet) as maps:
            return train_weights(
                erasure, s, parameters, from_loss(loss),
                weight_decay=1e-2, clip_norm=s.clip_norm if s.group == "xattn" else None,
            )  # fmt: skip


def attention_norms(maps: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """‖attention to the words‖₂ of each layer: (layers,) of maps (n, heads, pixels, tokens) by
    layer and words bool (n, tokens). Their own norm is that of all layers together.
    """
    import torch

    from workers.diffusion.attention import to_words
    from workers.diffusion.denoise import at_least_fp32

    return torch.stack([at_least_fp32(p).norm() for p in to_words(maps, words).values()])
