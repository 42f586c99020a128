"""Concept ablation: the concept's prompts should predict what an anchor's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need_pictures
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned


class ConceptAblationSettings(AnchoredSettings):
    """What is trained, and whether the anchor itself is held in place.

    Tuned to the shapes base: sweeps/tuning/concept_ablation.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 1.6e-5, "iterations": 100, "batch_size": 8, "prior_weight": 0.0,
            "images_per_prompt": 200,
        }, "ours", ""),
        "sd-nudity": Preset({
            "learning_rate": 4e-6, "iterations": 400, "batch_size": 8, "prior_weight": 1.0,
            "images_per_prompt": 200,
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(
        5e-4, gt=0, description="AdamW's effective rate: released configurations scale theirs by "
        "batch size and number of GPUs"
    )  # fmt: skip
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay")
    prior_weight: float = Field(
        1.0, ge=0, description="weight of the ordinary loss on anchor pictures; 0: none"
    )
    group: Literal["xattn_kv", "xattn", "full"] = Field("xattn_kv", description="what is trained")


class ConceptAblation(PictureUnlearner):
    """Match the concept's prediction on anchor pictures to the anchor's own prediction.

    Concept ablation, model-based (Kumari et al., "Ablating Concepts in Text-to-Image Diffusion
    Models", ICCV 2023, eq. 5): MSE(ε_θ(x_t, c_target), sg[ε_θ(x_t, c_anchor)]) with x_0 a picture
    of the *anchor*, the anchor's prediction from the current model; optionally the ordinary loss on
    the anchor's pictures. attn2's k and v. "sd" draws 1000 anchor pictures with five prompts.
    """

    name = "concept_ablation"
    version = 1
    uses = frozenset({"anchors"})
    paper = "Kumari et al., ICCV 2023"
    Settings = ConceptAblationSettings
    settings: ConceptAblationSettings

    def needs(self, base: BasePlugin, concept: str) -> Mapping[str, Need]:
        """Pictures of the anchor only."""
        prompts = self.prompts(base, self.anchor(base, concept))
        return {"anchor": need_pictures(base, prompts, self.settings.images_per_prompt)}

    def passes(self) -> int:
        """The trained pass, the anchor's, and the prior's."""
        s = self.settings
        return s.iterations * (4 + (3 if s.prior_weight else 0)) * s.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from torch import Tensor

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import embed
        from workers.erasure.relabel import PictureSet, counterparts, denoising_loss, relabel_loss
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        predict = noise_predictor(pipe)
        pictures = erasure.materials["anchor"]
        anchor = PictureSet.of(pipe, pictures)
        asked = counterparts(pictures.prompts, erasure.anchor_prompts, erasure.prompts)
        concept = embed(pipe, asked)

        def loss(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)
            batch = anchor.batch(*at, "anchor")
            ablated = relabel_loss(predict, predict, batch, concept, anchor.text)
            if not s.prior_weight:
                return ablated
            prior = denoising_loss(predict, anchor.batch(*at, "prior"), anchor.text)
            return ablated + s.prior_weight * prior

        return train_weights(erasure, s, parameters, from_loss(loss), weight_decay=s.weight_decay)
