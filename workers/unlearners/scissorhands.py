"""Scissorhands: cut the weights that matter most for the concept, then repair."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need, unpack
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ScissorhandsSettings(AnchoredSettings):
    """How much is cut, and how the rest is repaired.

    Tuned to the shapes base: sweeps/tuning/scissorhands.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-nsfw": Preset({
            "variant": "released", "sparsity": 0.9, "score_batches": 10, "score_guidance": 0.0,
            "initial": "uniform", "learning_rate": 1e-5, "batch_size": 8, "iterations": 500,
            "forget_weight": 0.1, "forget_loss": "relabel",
            "prompts": ["a photo of {concept}"], "anchor": "a person wearing clothes",
            "preserve": ["a person wearing clothes"],
            "images_per_prompt": 800, "retain_images_per_prompt": 800,
        }, "released", "Scissorhands, its nudity script: 5 epochs of 800 pictures (M); its concept "
            "is \"a nude person\""),
        "sd-class": Preset({
            "variant": "released", "sparsity": 0.9, "score_batches": 1, "score_guidance": 7.5,
            "initial": "normal", "learning_rate": 1e-5, "batch_size": 8, "iterations": 500,
            "forget_weight": 0.1, "forget_loss": "ascent", "prompts": ["an image of a {concept}"],
            "images_per_prompt": 800, "retain_images_per_prompt": 100,
        }, "ours", "Scissorhands' class script on 800 drawn pictures; released: real pictures of "
            "ten classes, 5 epochs"),
        "sd-nsfw-paper": Preset({
            "variant": "paper", "sparsity": 0.995, "learning_rate": 1e-5, "batch_size": 16,
            "iterations": 250, "forget_weight": 0.1, "forget_loss": "relabel", "score_batches": 10,
            "prompts": ["a photo of {concept}"], "anchor": "a person wearing clothes",
            "preserve": ["a person wearing clothes"],
            "images_per_prompt": 800, "retain_images_per_prompt": 800,
        }, "paper", "Wu and Harandi, its nudity experiment: 5 epochs of 800 pictures (M)"),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper",
        description="paper: scores |Σ g| · |w|, cut anywhere, repair along projected gradients; "
        "released: (Σ |g|) · |w|, cut only in two self-attentions, no projection",
    )
    iterations: int = Field(100, ge=1, description="optimiser steps of the repair")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's learning rate")
    sparsity: float = Field(0.9999, gt=0, lt=1, description="share of weights that is not cut")
    score_batches: int = Field(10, ge=1, description="batches of gradients behind the scores")
    score_guidance: float = Field(
        0.0, ge=0, description="g: the scores' gradients are of (1 + g) ε(c) - g ε(∅)"
    )
    initial: Literal["layer", "uniform", "normal"] = Field(
        "layer",
        description="what is cut begins anew as: layer: torch begins such a layer; uniform: in "
        "±√(6 / fan-in) (released, nudity); normal: N(0, 0.02²) (released, classes); the last two "
        "with biases of 0",
    )
    forget_weight: float = Field(1.0, ge=0, description="λ, the weight of the forget loss")
    forget_loss: Literal["relabel", "ascent"] = Field(
        "relabel", description="relabel: predict the anchor's; ascent: climb the concept's own loss"
    )


class Scissorhands(PictureUnlearner):
    """Re-initialise the weights with the largest connection sensitivity, then train on the rest.

    Scissorhands (Wu and Harandi, ECCV 2024). Cut: weights whose SNIP score under the concept's
    loss is in the top 1 - sparsity of the whole UNet get an initial distribution. Repair: L_r + λ
    L_f with L_f = MSE(ε_θ(x_t, c_f), sg[ε_θ(x_t, c')]) or -(the concept's own loss).

    Variant `paper` scores |Σ g| · |w| over batches, cuts anywhere, and projects every repair
    gradient g so that a step never lowers the concept's own loss: if ⟨g, g_o⟩ > 0 for its gradient
    g_o, g - ⟨g, g_o⟩/|g_o|² g_o (one constraint, in closed form). Variant `released` scores (Σ |g|)
    · |w|, leaves the projection out, and of what is to be cut it cuts only what is in the
    self-attention of `attentions.1` of the first two up blocks that have any attention.
    """

    name = "scissorhands"
    version = 2
    uses = frozenset({"retained", "anchors"})
    joint = True
    jointly = "ours, published for one concept: all concepts' pictures are one forget set"
    paper = "Wu and Harandi, ECCV 2024"
    golden = "scores, threshold and cut, bit for bit, and how the new weights are distributed"
    Settings = ScissorhandsSettings
    settings: ScissorhandsSettings

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures, and the mask of what is to be cut."""
        s, needs = self.settings, super().needs(base, erased)
        cut = need(
            "saliency", of=needs["forget"],
            score="snip_by_batch" if s.variant == "released" else "snip",
            share=1 - s.sparsity, batches=s.score_batches, batch_size=s.batch_size,
            guidance=s.score_guidance,
        )  # fmt: skip
        return {**needs, "cut": cut}

    def passes(self) -> int:
        """Two trained passes, the relabelling one, and the projection's."""
        each = 7 + (3 if self.settings.variant == "paper" else 0)
        return self.settings.iterations * each * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Cut, then repair the whole UNet."""
        import torch

        from workers.erasure.relabel import Relabelling
        from workers.training.optimise import train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, "full")
        losses = Relabelling.of(erasure, s.loss_in)
        share = self.cut(erasure, parameters)

        def backward(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)
            own = None
            if s.variant == "paper":
                own = torch.autograd.grad(losses.own(at), list(parameters.values()))
            gone = losses.gone(at) if s.forget_loss == "relabel" else -losses.own(at)
            loss = losses.kept(at) + s.forget_weight * gone
            loss.backward()
            if own is not None:
                project([p.grad for p in parameters.values() if p.grad is not None], own)
            return loss.detach()

        made = train_weights(erasure, s, parameters, backward, name="repair")
        return Unlearned(made.edits, {**made.numbers, "cut": share})

    def cut(self, erasure: Erasure, parameters: Mapping[str, nn.Parameter]) -> float:
        """Re-initialise the chosen weights; return their share."""
        import torch

        from workers.diffusion.rng import generator

        packed, cut, total = erasure.materials["cut"], 0, 0
        if self.settings.variant == "released":
            allowed = cut_as_released(list(parameters))
        else:
            allowed = list(parameters)
        with torch.no_grad():
            for name, value in parameters.items():
                total += value.numel()
                if name not in allowed:
                    continue
                mask = unpack(packed[name], value.shape)
                draw = generator(erasure.seed, 0, f"initial {name}")
                fresh = initial(self.settings.initial, name, parameters, draw).to(value.device)
                value.copy_(torch.where(mask.to(value.device), fresh, value))
                cut += int(mask.sum())
        return cut / total


def cut_as_released(names: Sequence[str]) -> list[str]:
    """Of a UNet's parameters, those of attn1 in `attentions.1` of the first two up blocks that have
    any attention: in Stable Diffusion `up_blocks.1` and `up_blocks.2`.
    """
    found = (re.match(r"(up_blocks\.\d+)\.attentions\.", name) for name in names)
    blocks = list(dict.fromkeys(match[1] for match in found if match))[:2]
    inside = tuple(f"{block}.attentions.1." for block in blocks)
    return [name for name in names if name.startswith(inside) and ".attn1." in name]


def initial(
    kind: Literal["layer", "uniform", "normal"],
    name: str,
    parameters: Mapping[str, Tensor],
    draw: torch.Generator,
) -> Tensor:
    """What a weight begins with. fp32 on the CPU, in the shape of `parameters[name]`.

    layer: as torch begins a Linear or Conv2d, uniform in ±1/√fan_in, its bias by its weight's
    fan_in. uniform: ±√(6/fan_in), a bias 0 (He et al. 2015 for a rectifier). normal: N(0, 0.02²), a
    bias 0. A norm begins with 1 and 0.
    """
    import torch

    value = parameters[name]
    weight = parameters[name.removesuffix("bias") + "weight"] if name.endswith("bias") else value
    if weight.dim() < 2:
        return torch.full(value.shape, float(weight is value))
    empty = torch.empty(value.shape)
    if kind != "layer" and weight is not value:
        return empty.zero_()
    if kind == "normal":
        return empty.normal_(0, 0.02, generator=draw)
    bound = math.sqrt((6 if kind == "uniform" else 1) / weight[0].numel())
    return empty.uniform_(-bound, bound, generator=draw)


def project(gradients: list[Tensor], own: tuple[Tensor, ...]) -> None:
    """In place: no step along -g may lower the loss whose gradient is `own`.

    g - max(0, ⟨g, o⟩) / |o|² · o, over all tensors at once; nothing waits for the device.
    """
    import torch

    inner = torch.stack([(g * o).sum() for g, o in zip(gradients, own, strict=True)]).sum()
    norm = torch.stack([o.square().sum() for o in own]).sum()
    scale = inner.clamp_min(0) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    for gradient, other in zip(gradients, own, strict=True):
        gradient.sub_(scale * other)
