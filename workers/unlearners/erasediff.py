"""EraseDiff: forget as hard as K steps would, at the least cost to what is retained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


class EraseDiffSettings(AnchoredSettings):
    """The two levels and their balance.

    Tuned to the shapes base: sweeps/tuning/erasediff.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-class": Preset(
            {"learning_rate": 1e-5, "batch_size": 16, "iterations": 250, "weight": 1.0}, "ours", ""
        ),
        "sd-nudity": Preset({
            "learning_rate": 1e-5, "batch_size": 16, "iterations": 250, "weight": 1.0,
            "anchor": "a photo of a pokemon",
        }, "ours", ""),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper",
        description="paper: the value function's gradient, L_f(θ) minus L_f(θ_K); released: "
        "L_f(θ_K) detached, which is plain relabelling with retained pictures",
    )
    group: Literal["full", "xattn", "noxattn"] = Field("noxattn", description="what is trained")
    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-4, gt=0, description="Adam's learning rate")
    weight: float | None = Field(
        1.0, gt=0, description="λ of the forget term; null: max(0, η - cos(g_r, g_q)) each step"
    )
    eta: float = Field(1.0, gt=0, description="η of the automatic weight")
    inner_steps: int = Field(2, ge=1, description="K, the forget steps that define θ_K")
    inner_rate: float = Field(1.0, gt=0, description="learning rate of the K steps (SGD)")


class EraseDiff(PictureUnlearner):
    """Minimise the retained loss under the constraint that the concept is forgotten.

    EraseDiff (Wu et al., "Erasing Undesirable Influence in Diffusion Models", CVPR 2025): bilevel
    by value function. K steps on L_f give θ_K; back at θ, minimise L_r + λ (L_f(θ) - L_f(θ_K)) to
    first order, so that the forget part of the gradient is ∇L_f(θ) - ∇L_f(θ_K). L_f relabels:
    MSE(ε_θ(x_t, c_f), sg[ε_θ(x_t, c')]). The released code detaches L_f(θ_K).
    """

    name = "erasediff"
    version = 1
    uses = frozenset({"retained", "anchors"})
    paper = "Wu et al., CVPR 2025"
    Settings = EraseDiffSettings
    settings: EraseDiffSettings

    def passes(self) -> int:
        """Retained, forget, and in the paper's variant the K steps and the one at θ_K."""
        s = self.settings
        inner = 4 * (s.inner_steps + 1) if s.variant == "paper" else 0
        return s.iterations * (7 + inner) * s.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        import torch

        from workers.erasure.relabel import Relabelling
        from workers.training.optimise import train_weights
        from workers.training.selection import select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        values = list(parameters.values())
        losses = Relabelling.of(erasure, s.loss_in)

        def backward(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)

            def forgotten(turn: int) -> Tensor:
                return losses.gone(at, f"forget {turn}")

            kept = losses.kept(at)
            retaining = torch.autograd.grad(kept, values)
            gone = forgotten(0)
            forgetting = torch.autograd.grad(gone, values)
            if s.variant == "paper":
                there = gradient_after(values, forgotten, s.inner_steps, s.inner_rate)
                forgetting = tuple(g - t for g, t in zip(forgetting, there, strict=True))
            weight: Tensor | float
            if s.weight is None:
                weight = automatic_weight(retaining, forgetting, s.eta)
            else:
                weight = s.weight
            for value, r, f in zip(values, retaining, forgetting, strict=True):
                value.grad = r + weight * f
            return (kept + gone).detach()

        return train_weights(erasure, s, parameters, backward)


def gradient_after(
    values: list[nn.Parameter], loss: Callable[[int], Tensor], steps: int, rate: float
) -> tuple[Tensor, ...]:
    """∇L at θ_K, where K steps of SGD on L lead; `values` are back at θ afterwards, exactly.

    `loss(turn)` draws its own data for each turn; turn 0 is that of the gradient at θ, and the
    gradient at θ_K is taken on the same data.
    """
    import torch

    before = [value.detach().clone() for value in values]
    try:
        for turn in range(1, steps + 1):
            gradients = torch.autograd.grad(loss(turn), values)
            with torch.no_grad():
                for value, gradient in zip(values, gradients, strict=True):
                    value.sub_(rate * gradient)
        return torch.autograd.grad(loss(0), values)
    finally:
        with torch.no_grad():
            for value, kept in zip(values, before, strict=True):
                value.copy_(kept)


def automatic_weight(
    retaining: tuple[Tensor, ...], forgetting: tuple[Tensor, ...], eta: float
) -> Tensor:
    """max(0, η - cos(g_r, g_q)), a scalar on the device."""
    import torch

    pairs = list(zip(retaining, forgetting, strict=True))
    inner = torch.stack([(r * f).sum() for r, f in pairs]).sum()
    norms = [
        torch.stack([g.square().sum() for g in some]).sum().sqrt()
        for some in (retaining, forgetting)
    ]
    return (eta - inner / (norms[0] * norms[1]).clamp_min(1e-12)).clamp_min(0)
