"""EraseDiff: forget as hard as K steps would, at the least cost to what is retained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from workers.erasure.relabel import Relabelling

    Gradients = tuple[Tensor, ...]


class EraseDiffSettings(AnchoredSettings):
    """The two levels and their balance.

    Tuned to the shapes base: sweeps/tuning/erasediff.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-class": Preset({
            "variant": "released", "learning_rate": 1e-5, "batch_size": 8, "iterations": 500,
            "epoch_steps": 100, "inner_passes": 2, "weight": 0.1, "group": "noxattn",
            "anchor": "pokemon", "prompts": ["an image of a {concept}"],
            "images_per_prompt": 800, "retain_images_per_prompt": 100,
        }, "ours", "EraseDiff's rate, passes and λ on 800 drawn pictures; released: real pictures "
            "of ten classes, and \"a photo of a pokemon\" as the anchor"),
        "sd-nudity": Preset({
            "variant": "released", "learning_rate": 1e-5, "batch_size": 8, "iterations": 500,
            "epoch_steps": 100, "inner_passes": 2, "weight": 0.1, "group": "noxattn",
            "anchor": "a pokemon", "prompts": ["a photo of {concept}"],
            "preserve": ["a person wearing clothes"],
            "images_per_prompt": 800, "retain_images_per_prompt": 800,
        }, "released", "EraseDiff, its nudity script: 5 epochs of 800 and 800 pictures (M); its "
            "concept is \"a nude person\""),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "released",
        description="paper: the value function's gradient, L_f(θ) minus L_f(θ_K); released: K "
        "passes of forget steps that are undone, L_f(θ_K) a constant",
    )
    group: Literal["full", "xattn", "noxattn"] = Field("noxattn", description="what is trained")
    iterations: int = Field(
        100, ge=1, description="optimiser steps; released: those that are not undone"
    )
    learning_rate: float = Field(1e-4, gt=0, description="Adam's learning rate")
    weight: float | None = Field(
        1.0, gt=0, description="λ of the forget term; null: max(0, η - cos(g_r, g_q)) each step"
    )
    eta: float = Field(1.0, gt=0, description="η of the automatic weight")
    inner_steps: int = Field(2, ge=1, description="paper: K, the forget steps that define θ_K")
    inner_rate: float = Field(1.0, gt=0, description="paper: learning rate of the K steps (SGD)")
    inner_passes: int = Field(
        2, ge=0, description="released: K, the passes of forget steps in an epoch; 0: none, which "
        "leaves relabelling with retained pictures"
    )  # fmt: skip
    epoch_steps: int = Field(
        100, ge=1, description="released: steps of a pass, one for each batch of an epoch"
    )


class EraseDiff(PictureUnlearner):
    """Minimise the retained loss under the constraint that the concept is forgotten.

    EraseDiff (Wu et al., "Erasing Undesirable Influence in Diffusion Models", CVPR 2025): bilevel
    by value function. L_f relabels: MSE(ε_θ(x_t, c_f), sg[ε_θ(x_t, c')]).

    Variant `paper`: K steps on L_f give θ_K; back at θ, minimise L_r + λ (L_f(θ) - L_f(θ_K)) to
    first order, so that the forget part of the gradient is ∇L_f(θ) - ∇L_f(θ_K).

    Variant `released`, with that code's faults: in each epoch, from θ_i, K passes of (one Adam step
    on L_f a batch; back to θ_i; one step on L_r + λ (L_f - ℓ) a batch), with ℓ the mean loss of the
    pass's forget steps and no gradient. Every pass but the last is thrown away with the way back to
    θ_i; only Adam's moments and its count of steps, which are one for all steps, keep a trace.
    """

    name = "erasediff"
    version = 3
    uses = frozenset({"retained", "anchors"})
    joint = True
    jointly = "ours, published for one concept: all concepts' pictures are one forget set"
    paper = "Wu et al., CVPR 2025"
    golden = "an epoch as released, and its outer steps alone"
    Settings = EraseDiffSettings
    settings: EraseDiffSettings

    def passes(self) -> int:
        """Retained, forget, and the K steps with the one at θ_K or the K passes of both kinds."""
        s = self.settings
        released = 11 * s.inner_passes or 7
        each = 7 + 4 * (s.inner_steps + 1) if s.variant == "paper" else released
        return s.iterations * each * s.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from workers.erasure.relabel import Relabelling
        from workers.training.selection import select

        s = self.settings
        parameters = select(erasure.pipe.unet, s.group)
        losses = Relabelling.of(erasure, s.loss_in)
        train = self._as_in_the_paper if s.variant == "paper" else self._as_released
        return train(erasure, parameters, losses)

    def _as_in_the_paper(
        self, erasure: Erasure, parameters: Mapping[str, nn.Parameter], losses: Relabelling
    ) -> Unlearned:
        import torch

        from workers.training.optimise import train_weights

        s, values = self.settings, list(parameters.values())

        def backward(step: int) -> Tensor:
            at = (s.batch_size, erasure.seed, step)

            def forgotten(turn: int) -> Tensor:
                return losses.gone(at, f"forget {turn}")

            kept, gone = losses.kept(at), forgotten(0)
            retaining = torch.autograd.grad(kept, values)
            forgetting = torch.autograd.grad(gone, values)
            there = gradient_after(values, forgotten, s.inner_steps, s.inner_rate)
            for g, t in zip(forgetting, there, strict=True):
                g.sub_(t)
            self._balance(values, retaining, forgetting)
            return (kept + gone).detach()

        return train_weights(erasure, s, parameters, backward)

    def _as_released(
        self, erasure: Erasure, parameters: Mapping[str, nn.Parameter], losses: Relabelling
    ) -> Unlearned:
        import torch

        from workers.training.optimise import train_weights

        s, values = self.settings, list(parameters.values())
        start = {f"start.{n}": v.detach().clone() for n, v in parameters.items()}
        forgot = torch.zeros((), device=erasure.pipe.device)

        def place(step: int) -> Place:
            return Place.of(step, s.iterations, s.epoch_steps, s.inner_passes)

        def backward(step: int) -> Tensor:
            here, at = place(step), (s.batch_size, erasure.seed, step)
            if not here.is_outer:
                gone = losses.gone(at, "inner")
                gone.backward()
                forgot.mul_(0 if here.index == 0 else 1).add_(gone.detach() / here.count)
                return gone.detach()
            kept, gone = losses.kept(at), losses.gone(at)
            retaining = torch.autograd.grad(kept, values)
            weight = self._balance(values, retaining, torch.autograd.grad(gone, values))
            return (kept + weight * (gone - forgot)).detach()

        @torch.no_grad()
        def after_step(step: int) -> None:
            here = place(step)
            if here.index < here.count - 1:
                return
            if not here.is_outer:
                for value, before in zip(values, start.values(), strict=True):
                    value.copy_(before)
            elif here.is_last_pass:
                for value, before in zip(values, start.values(), strict=True):
                    before.copy_(value)

        return train_weights(
            erasure, s, parameters, backward, after_step=after_step,
            iterations=s.iterations * max(1, 2 * s.inner_passes),
            carried={**start, "forgot": forgot},
        )  # fmt: skip

    def _balance(
        self, values: list[nn.Parameter], retaining: Gradients, forgetting: Gradients
    ) -> Tensor | float:
        """Leave g_r + λ g_f in the values, in the place of g_f; return λ."""
        weight: Tensor | float | None = self.settings.weight
        if weight is None:
            weight = automatic_weight(retaining, forgetting, self.settings.eta)
        for value, r, f in zip(values, retaining, forgetting, strict=True):
            value.grad = f.mul_(weight).add_(r)
        return weight


@dataclass(frozen=True)
class Place:
    """Where an optimiser step stands in the released code's loops."""

    is_outer: bool
    is_last_pass: bool
    index: int
    """Of the step among the pass's `count` inner or outer ones."""
    count: int

    @classmethod
    def of(cls, step: int, iterations: int, epoch_steps: int, passes: int) -> Place:
        """In epochs of `passes` times (inner steps, outer steps), `epoch_steps` of each.

        The last epoch is what is left of `iterations`. Without passes all steps are outer ones.
        """
        if passes == 0:
            return cls(True, True, step, iterations)
        epoch, within = divmod(step, 2 * passes * epoch_steps)
        count = min(epoch_steps, iterations - epoch * epoch_steps)
        half, index = divmod(within, count)
        return cls(half % 2 == 1, half // 2 == passes - 1, index, count)


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
