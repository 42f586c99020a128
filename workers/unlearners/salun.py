"""SalUn: relabel the concept, moving only the weights that matter for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need, unpack
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned


class SalUnSettings(AnchoredSettings):
    """The mask and the two losses' balance.

    Tuned to the shapes base: sweeps/tuning/salun.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-class": Preset({
            "learning_rate": 1e-5, "batch_size": 8, "retain_weight": 0.5, "iterations": 500,
            "mask_share": 0.5, "mask_guidance": 7.5, "mask_batches": None,
            "prompts": ["an image of a {concept}"],
            "images_per_prompt": 800, "retain_images_per_prompt": 100,
        }, "ours", "Unlearn-Saliency's prompt, rate, α and mask on 800 drawn pictures; released: "
            "real pictures of ten classes, the next of which is the anchor, 5 epochs"),
        "sd-nsfw": Preset({
            "learning_rate": 1e-5, "batch_size": 8, "retain_weight": 0.1, "iterations": 100,
            "mask_share": 0.5, "mask_guidance": 7.5, "mask_batches": None,
            "prompts": ["a photo of {concept}"], "anchor": "a person wearing clothes",
            "preserve": ["a person wearing clothes"],
            "images_per_prompt": 800, "retain_images_per_prompt": 800,
        }, "released", "Unlearn-Saliency, its nudity script and its mask script; "
            "its concept is \"a nude person\""),
    }  # fmt: skip

    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-4, gt=0, description="Adam's learning rate")
    retain_weight: float = Field(0.5, ge=0, description="α, the weight of the ordinary loss")
    mask_share: float = Field(0.5, gt=0, le=1, description="share of weights that may move")
    mask_guidance: float = Field(
        7.5, ge=0, description="g: the mask's gradients are of (1 + g) ε(c) - g ε(∅)"
    )
    mask_batches: int | None = Field(
        None, ge=1, description="batches behind the mask; null: every picture to forget, once"
    )


class SalUn(PictureUnlearner):
    """Train the concept's prompts towards another concept's prediction, under a saliency mask.

    SalUn (Fan et al., ICLR 2024, eq. 5): MSE(ε_θ(x_t, c_f), sg[ε_θ(x_t, c')]) + α · the ordinary
    loss on retained pictures, gradients times the mask of the half of the weights with the largest
    summed gradients of the concept's own loss (a material of its own). Paper and released code are
    one: the latter takes that loss of the prediction under guidance 7.5, over the whole forget set.
    Plain Adam, because weight decay would move masked weights; those stay bit-identical. A teacher
    and a student at one x_t see one encoded picture (the released code encodes it twice).
    """

    name = "salun"
    version = 2
    uses = frozenset({"retained", "anchors"})
    joint = True
    jointly = "ours, published for one concept: all concepts' pictures are one forget set"
    paper = "Fan et al., ICLR 2024"
    golden = "the mask, bit for bit, and three updates under it"
    Settings = SalUnSettings
    settings: SalUnSettings

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures, and the mask that is made from those to forget."""
        s, needs = self.settings, super().needs(base, erased)
        mask = need(
            "saliency", of=needs["forget"],
            share=s.mask_share, batches=s.mask_batches, batch_size=s.batch_size,
            guidance=s.mask_guidance,
        )  # fmt: skip
        return {**needs, "mask": mask}

    def passes(self) -> int:
        """Two trained passes and the relabelling one."""
        return self.settings.iterations * 7 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the whole UNet under the mask."""
        from torch import Tensor

        from workers.erasure.relabel import Relabelling
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, "full")
        losses = Relabelling.of(erasure, s.loss_in)
        packed = erasure.materials["mask"]
        masks = {n: unpack(packed[n], v.shape).to(v.device) for n, v in parameters.items()}

        def loss(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)
            return losses.gone(at) + s.retain_weight * losses.kept(at)

        def mask() -> None:
            for name, value in parameters.items():
                if value.grad is not None:
                    value.grad.mul_(masks[name])

        return train_weights(erasure, s, parameters, from_loss(loss), on_gradients=mask)
