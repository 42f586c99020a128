"""Concept ablation: the concept's prompts should predict what an anchor's do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need_pictures
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Prompts, Unlearned, trained_on

if TYPE_CHECKING:
    from torch import Tensor


class ConceptAblationSettings(AnchoredSettings):
    """What is trained, and whether the anchor itself is held in place.

    Tuned to the shapes base: sweeps/tuning/concept_ablation.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "variant": "released", "learning_rate": 1.6e-5, "iterations": 100, "batch_size": 8,
            "prior_weight": 0.0, "group": "xattn_kv", "prompts": "bare",
            "images_per_prompt": 1000,
        }, "ours", "concept-ablation's rate (2e-6 times batch 4 times 2 GPUs) and steps, on 1000 "
            "pictures of the bare anchor; released: of 200 prompts written for each anchor"),
        "sd-nudity": Preset({
            "variant": "released", "learning_rate": 6.4e-5, "iterations": 400, "batch_size": 8,
            "prior_weight": 1.0, "group": "attention", "prompts": "bare",
            "images_per_prompt": 1000,
        }, "ours", "concept-ablation's rate (4e-6 times batch 4 times 2 GPUs, and doubled because "
            "there is a prior) and steps, on 1000 pictures of the bare anchor; released: of 1000 "
            "prompts"),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "released",
        description="released: no gradient goes through the start token's key and value",
    )
    prompts: Prompts = trained_on("base")
    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(
        4e-4, gt=0, description="AdamW's effective rate: released configurations scale theirs by "
        "batch size and number of GPUs, and double it where there is a prior"
    )  # fmt: skip
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled weight decay")
    prior_weight: float = Field(
        1.0, ge=0, description="weight of the ordinary loss on anchor pictures, a mean; 0: none"
    )
    clip_norm: float = Field(1.0, gt=0, description="the largest norm of attn2's gradients")
    group: Literal["xattn_kv", "xattn", "attention", "full"] = Field(
        "xattn_kv", description="what is trained"
    )


class ConceptAblation(PictureUnlearner):
    """Match the concept's prediction on anchor pictures to the anchor's own prediction.

    Concept ablation, model-based (Kumari et al., "Ablating Concepts in Text-to-Image Diffusion
    Models", ICCV 2023, eq. 5): ‖ε_θ(x_t, c_target) - sg[ε_θ(x_t, c_anchor)]‖² with x_0 a picture
    of the *anchor*, the anchor's prediction from the current model; optionally the ordinary loss on
    the anchor's pictures. The squares are summed over the channels and meant over the picture's
    cells, as released, so that a prior of weight 1 counts a quarter of it (four channels). attn2's
    k and v. Variant `released` has that code's fault: in attn2 the start token's key and value pass
    no gradient on. It is the default, because it leaves more of the retained shapes. Resized
    pictures of objects, which the released code trains on, are not made.
    """

    name = "concept_ablation"
    version = 3
    uses = frozenset({"anchors"})
    joint = True
    jointly = "each concept on its own anchor's pictures, all in one training, as published"
    paper = "Kumari et al., ICCV 2023"
    golden = "three updates of each form: x_t, target, prediction, both losses and the weights"
    Settings = ConceptAblationSettings
    settings: ConceptAblationSettings

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures of the anchor only."""
        prompts = self.all_anchor_prompts(base, erased)
        return {"anchor": need_pictures(base, prompts, self.settings.images_per_prompt)}

    def passes(self) -> int:
        """The trained pass, the anchor's, and the prior's."""
        s = self.settings
        return s.iterations * (4 + (3 if s.prior_weight else 0)) * s.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from torch import nn

        from workers.diffusion.attention import start_token_blocked
        from workers.diffusion.denoise import predictor
        from workers.diffusion.text import embed
        from workers.erasure.relabel import PictureSet, counterparts, denoising_loss, relabelled
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        clipped = [value for name, value in parameters.items() if "attn2." in name]
        predict = predictor(pipe, s.loss_in)
        pictures = erasure.materials["anchor"]
        anchor = PictureSet.of(pipe, pictures)
        asked = counterparts(pictures.prompts, erasure.anchor_prompts, erasure.prompts)
        concept = embed(pipe, asked)

        def loss(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)
            batch = anchor.batch(*at, "anchor")
            pair = relabelled(predict, predict, batch, concept, anchor.text)
            ablated = squares_where(*pair, batch.mask)
            if not s.prior_weight:
                return ablated
            batch = anchor.batch(*at, "prior")
            target = anchor.target(batch, s.loss_in)
            return ablated + s.prior_weight * denoising_loss(predict, batch, anchor.text, target)

        def clip() -> None:
            # Of attn2 alone, also where more is trained: the released code names attn2's.
            nn.utils.clip_grad_norm_(clipped, s.clip_norm)

        blocked = start_token_blocked(pipe.unet) if s.variant == "released" else nullcontext()
        with blocked:
            return train_weights(
                erasure, s, parameters, from_loss(loss),
                weight_decay=s.weight_decay, on_gradients=clip,
            )  # fmt: skip


def squares_where(found: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over pictures of Σ_{channels, cells} m (found - target)² / Σ_{cells} m.

    Both are (n, c, h, w), the mask is (n, 1, h, w); None: 1 everywhere. The denominator counts no
    channels: with a full mask it is c times the mean square.
    """
    squares = (found - target).square().sum(dim=1, keepdim=True)
    if mask is None:
        return squares.mean()
    return ((mask * squares).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).mean()
