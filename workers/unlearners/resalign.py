"""ResAlign: unlearn so that ordinary fine-tuning does not bring the concept back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import PictureSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, OutputSettings, Unlearned

if TYPE_CHECKING:
    from torch import Tensor

    from workers.erasure.relabel import NoisyPictures, PictureSet

HALVINGS = 5
"""Of the fixed point's step size, before the hypergradient is given up."""


class ResAlignSettings(PictureSettings, OutputSettings):
    """The simulated fine-tunes and the weights of the three terms.

    Tuned to the shapes base: sweeps/tuning/resalign.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "prompts": "bare", "learning_rate": 2e-4, "iterations": 160, "batch_size": 1,
            "retain_batch_size": 4, "rank": 4, "resilience_weight": 0.8, "retain_weight": 1.6,
            "final_retain_weight": 2.0, "simulations": 3, "min_simulated_steps": 5,
            "max_simulated_steps": 30, "simulated_rates": (1e-6, 1e-5, 1e-4),
            "fixed_point_steps": 5, "hypergradient_limit": 0.2, "hypergradient_scale": 0.3,
        }, "ours", "as released, but for what is trained on and the rates of the fine-tunes that "
        "are simulated (3 of 14 ways there)"),
    }  # fmt: skip

    iterations: int = Field(16, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-2, gt=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="pictures per step")
    retain_batch_size: int = Field(8, ge=1, description="retained pictures per step")
    rank: int = Field(4, ge=1, description="rank of the LoRA that is learned")
    resilience_weight: float = Field(0.8, ge=0, description="λ, weight of L(θ*) - L(θ)")
    retain_weight: float = Field(1.6, ge=0, description="w in the first half of the iterations")
    final_retain_weight: float = Field(2.0, ge=0, description="w to which it then grows")
    simulations: int = Field(1, ge=1, description="simulated fine-tunes per iteration")
    min_simulated_steps: int = Field(2, ge=1, description="shortest simulated fine-tune")
    max_simulated_steps: int = Field(5, ge=1, description="longest simulated fine-tune")
    simulated_rates: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3), min_length=1, description="learning rates to simulate"
    )
    simulated_on: Literal["forget", "retain", "both"] = Field(
        "both", description="pictures of the simulated fine-tunes"
    )
    fixed_point_steps: int = Field(5, ge=1, description="terms of the hypergradient's series")
    hypergradient_limit: float = Field(
        10.0, gt=0, description="a hypergradient of a larger norm is found again by smaller steps"
    )
    hypergradient_scale: float = Field(
        1.0, gt=0, description="what the mean hypergradient is multiplied by"
    )


@dataclass(frozen=True)
class Simulation:
    """A way of fine-tuning."""

    optimizer: str
    learning_rate: float
    steps: int


class ResAlign(PictureUnlearner):
    """Unlearn with a LoRA while simulated fine-tunes try to undo it.

    ResAlign (Li et al., NeurIPS 2025), as released. θ are the factors of a LoRA on the attention
    projections, and L = -D(θ) + λ (D(θ) - D(θ*)) + w R(θ) is descended. D is the ordinary diffusion
    loss on the concept's pictures (against v on a model that predicts v), the same pictures and
    time steps for θ and θ* with other noise; R is the MSE to the original's predictions on retained
    pictures. θ* = argmin of L_ft(p) + ½‖p - θ‖², a Moreau envelope of fine-tuning: a few steps of
    SGD or Adam on the factors stand for the argmin, and `hypergradient` is ∂L/∂θ through it. w
    grows in the second half.
    """

    name = "resalign"
    version = 2
    uses = frozenset({"retained"})
    joint = True
    jointly = "ours, published for one concept: all concepts' pictures are one forget set"
    paper = "Li et al., NeurIPS 2025"
    golden = "the hypergradient and its limit, the outer loss, weights over time, first factors"
    Settings = ResAlignSettings
    settings: ResAlignSettings

    def configurations(self) -> list[tuple[str, float]]:
        """(optimiser, rate) of every simulated fine-tune."""
        return list(product(("sgd", "adam"), self.settings.simulated_rates))

    def passes(self) -> int:
        """The three losses, and each simulation with its hypergradient."""
        s = self.settings
        steps = (s.min_simulated_steps + s.max_simulated_steps) / 2
        data = 2 if s.simulated_on == "both" else 1
        inner = data * (3 * steps + 3 + 3 * (s.fixed_point_steps - 1))
        each = 3 * s.batch_size + 4 * s.retain_batch_size
        return int(s.iterations * (each + s.simulations * (3 + inner) * s.batch_size))

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the LoRA."""
        import torch

        from workers.editing.edits import LowRank, snapshot
        from workers.training.optimise import minimise

        s = self.settings
        losses = Losses(erasure, s)
        space = losses.space
        # The UNet's own checkpointing would run forward again without the weights of `space`.
        plain_settings = s.model_copy(update={"gradient_checkpointing": False})
        theta = list(space.parameters.values())

        def backward(step: int) -> Tensor:
            lam = s.resilience_weight
            weight = scheduled(step, s.iterations, s.retain_weight, s.final_retain_weight)
            gone, kept = losses.forget(theta, step), losses.retain(theta, step)
            direct = torch.autograd.grad(outer_loss(gone, 0.0, kept, lam, weight), theta)
            found, after = [torch.zeros_like(value) for value in theta], torch.zeros_like(gone)
            for turn in range(s.simulations):
                simulation = self._simulation(erasure.seed, step, turn)
                reached = simulate(losses, theta, simulation, step, turn)
                again = losses.forget(reached, step, f"after {turn}")
                slope = torch.autograd.grad(outer_loss(0.0, again, 0.0, lam, 0.0), reached)
                through = hypergradient(
                    slope, direct, losses.inner(step, f"{turn}.end"), reached,
                    s.fixed_point_steps, s.hypergradient_limit,
                )  # fmt: skip
                after += again.detach() / s.simulations
                for total, one in zip(found, through, strict=True):
                    total += one / s.simulations
            for value, total in zip(theta, found, strict=True):
                value.grad = s.hypergradient_scale * total
            return outer_loss(gone.detach(), after, kept.detach(), lam, weight)

        mean = minimise(erasure, plain_settings, space.parameters, backward, weight_decay=1e-2)
        factors = {
            path: tuple(snapshot(space.parameters[f"{path}.{part}"]) for part in ("down", "up"))
            for path in space.paths
        }
        return Unlearned([LowRank(factors)], {"loss": mean})  # type: ignore[arg-type]

    def _simulation(self, seed: int, step: int, turn: int) -> Simulation:
        from workers.diffusion.rng import integers

        s, ways = self.settings, self.configurations()
        which = int(integers(len(ways), 1, seed, step, f"simulation {turn}"))
        low, high = sorted((s.min_simulated_steps, s.max_simulated_steps))
        steps = low + int(integers(high - low + 1, 1, seed, step, f"simulated steps {turn}"))
        return Simulation(*ways[which], steps)


class LoraSpace:
    """The UNet as a function of a LoRA's factors: for each attention projection down, then up."""

    def __init__(self, erasure: Erasure, settings: ResAlignSettings) -> None:
        from torch import nn

        from workers.diffusion.denoise import training_scheduler
        from workers.diffusion.lora import projections
        from workers.diffusion.rng import normal

        self.pipe, self.loss_in = erasure.pipe, settings.loss_in
        self.is_checkpointed = settings.gradient_checkpointing
        self.scheduler = training_scheduler(erasure.pipe)
        layers = projections(erasure.pipe.unet)
        self.paths = tuple(layers)
        self.base = [layer.weight for layer in layers.values()]
        self.parameters: dict[str, nn.Parameter] = {}
        for path, layer in layers.items():
            outputs, inputs = layer.weight.shape
            shapes = {"down": (settings.rank, inputs), "up": (outputs, settings.rank)}
            for part, deviation in DEVIATIONS.items():
                name = f"{path}.{part}"
                drawn = normal(
                    shapes[part], erasure.seed, 0, f"resalign {name}", erasure.pipe.device
                )
                self.parameters[name] = nn.Parameter(drawn * deviation)

    def weights(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """The projections' weights W + up · down."""
        pairs = zip(self.base, factors[::2], factors[1::2], strict=True)
        return [base + up @ down for base, down, up in pairs]

    def predict(
        self, factors: Sequence[Tensor] | None, latents: Tensor, timesteps: Tensor, text: Tensor
    ) -> Tensor:
        """With the given factors, or as the original; what is predicted, or the noise it means.

        Checkpointed, a pass keeps nothing and runs again.
        """
        from torch.utils.checkpoint import checkpoint

        from workers.runtime.parts import by_parts, part_size

        weights = self.base if factors is None else self.weights(factors)
        if part_size(len(latents)) < len(latents):
            return by_parts(self._predict, latents, timesteps, text, *weights)
        if not (self.is_checkpointed and any(value.requires_grad for value in weights)):
            return self._predict(latents, timesteps, text, *weights)
        made: Tensor = checkpoint(
            self._predict, latents, timesteps, text, *weights, use_reentrant=False
        )
        return made

    def _predict(
        self, latents: Tensor, timesteps: Tensor, text: Tensor, *weights: Tensor
    ) -> Tensor:
        """Second derivatives need the open attention."""
        from torch.func import functional_call
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from workers.diffusion.denoise import at_least_fp32, to_noise

        values = {f"{path}.weight": value for path, value in zip(self.paths, weights, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            out = functional_call(
                self.pipe.unet, values, (latents, timesteps), {"encoder_hidden_states": text}
            ).sample
        if self.loss_in == "output":
            return at_least_fp32(out)
        return to_noise(self.scheduler, out, latents, timesteps)


DEVIATIONS = {"down": 0.008, "up": 0.002}
"""Of the factors' first values, as released: neither begins at zero."""


class Losses:
    """D, R and L_ft as functions of a LoRA's factors."""

    def __init__(self, erasure: Erasure, settings: ResAlignSettings) -> None:
        from workers.erasure.relabel import PictureSet

        self.space, self.settings, self.seed = LoraSpace(erasure, settings), settings, erasure.seed
        self.forgotten = PictureSet.of(erasure.pipe, erasure.materials["forget"])
        self.retained = PictureSet.of(erasure.pipe, erasure.materials["retain"])

    def forget(self, factors: Sequence[Tensor], step: int, noise: str = "") -> Tensor:
        """D on the step's pictures of the concept; `noise` names another noise for them."""
        batch = self.forgotten.batch(self.settings.batch_size, self.seed, step, "forget")
        if noise:
            batch = self.forgotten.noised_again(batch, self.seed, step, f"forget {noise}")
        return self._ordinary(factors, self.forgotten, batch)

    def retain(self, factors: Sequence[Tensor], step: int) -> Tensor:
        """R: MSE to what the original predicts on retained pictures."""
        import torch
        from torch.nn import functional

        count = self.settings.retain_batch_size
        batch = self.retained.batch(count, self.seed, step, "retain")
        at = (batch.noisy, batch.timesteps, self.retained.text[batch.rows])
        with torch.no_grad():
            target = self.space.predict(None, *at)
        return functional.mse_loss(self.space.predict(factors, *at), target)

    def inner(self, step: int, stream: str) -> Callable[[Sequence[Tensor]], Tensor]:
        """L_ft: the ordinary loss on what a simulated fine-tune sees."""
        sets = {"forget": [self.forgotten], "retain": [self.retained]}
        chosen = sets.get(self.settings.simulated_on, [self.forgotten, self.retained])
        at = (self.settings.batch_size, self.seed, step, f"simulated {stream}")

        def loss(factors: Sequence[Tensor]) -> Tensor:
            terms = [self._ordinary(factors, data, data.batch(*at)) for data in chosen]
            return sum(terms[1:], terms[0]) / len(terms)

        return loss

    def _ordinary(
        self, factors: Sequence[Tensor], data: PictureSet, batch: NoisyPictures
    ) -> Tensor:
        from torch.nn import functional

        at = (batch.noisy, batch.timesteps, data.text[batch.rows])
        target = data.target(batch, self.settings.loss_in)
        return functional.mse_loss(self.space.predict(factors, *at), target)


def outer_loss(
    gone: Tensor | float,
    gone_after: Tensor | float,
    kept: Tensor | float,
    resilience_weight: float,
    retain_weight: float,
) -> Tensor:
    """-D(θ) + λ (-D(θ*) + D(θ)) + w R(θ); a term that is left out is 0."""
    grown = gone - gone_after
    return -gone + resilience_weight * grown + retain_weight * kept  # type: ignore[return-value]


def scheduled(step: int, iterations: int, first: float, last: float) -> float:
    """A weight: `first` in the first half of the iterations, then on a sigmoid towards `last`.

    It jumps a little at half, as released: the sigmoid's ends are 0.7% from 0 and 1.
    """
    half = iterations / 2
    if step + 1 < half:
        return first
    share = (step + 1 - half) / half
    return first + (last - first) / (1 + math.exp(-10 * (share - 0.5)))


def simulate(
    losses: Losses, theta: Sequence[Tensor], how: Simulation, step: int, turn: int
) -> list[Tensor]:
    """θ*: where a short fine-tune from θ leads; leaves with gradients."""
    import torch
    from torch import nn

    moving = [nn.Parameter(value.detach().clone()) for value in theta]
    rule = torch.optim.SGD if how.optimizer == "sgd" else torch.optim.Adam
    optimizer = rule(moving, lr=how.learning_rate)
    for t in range(how.steps):
        gradients = torch.autograd.grad(losses.inner(step, f"{turn}.{t}")(moving), moving)
        for value, gradient in zip(moving, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
    return [value.detach().requires_grad_(True) for value in moving]


def hypergradient(
    slope: Sequence[Tensor],
    direct: Sequence[Tensor],
    inner: Callable[[Sequence[Tensor]], Tensor],
    reached: Sequence[Tensor],
    terms: int,
    limit: float,
) -> Sequence[Tensor]:
    """dL/dθ through θ* = `reached`: `direct` ∂L/∂θ + (I + ∇²inner)⁻¹ `slope`, slope = ∂L/∂θ*.

    θ* is a fixed point of p ← p - ρ ∇(inner(p) + ½‖p - θ‖²). The inverse is the first `terms` of
    its series, at ρ = 1 Σ_j (-∇²inner)ʲ slope. Where they grow, or the result's norm exceeds
    `limit`, ρ is halved, and after `HALVINGS` of that what is left is `direct`.
    """
    import torch

    curve: Sequence[Tensor] = ()
    if terms > 1:
        curve = torch.autograd.grad(inner(reached), reached, create_graph=True)
    for halved in range(HALVINGS + 1):
        size = 0.5**halved
        series = _series(slope, curve, reached, terms, size)
        if series is None:
            continue
        found = [size * v + d for v, d in zip(series, direct, strict=True)]
        if torch.stack([value.norm() for value in found]).norm() <= limit:
            return found
    return direct


def _series(
    slope: Sequence[Tensor],
    curve: Sequence[Tensor],
    reached: Sequence[Tensor],
    terms: int,
    size: float,
) -> Sequence[Tensor] | None:
    """v after `terms` turns of v ← (1 - ρ) v - ρ ∇²inner v + slope from 0; None if it grows."""
    import torch

    v = slope
    for _ in range(terms - 1):
        bent = torch.autograd.grad(curve, reached, grad_outputs=v, retain_graph=True)
        carried = [(1 - size) * a - size * b for a, b in zip(v, bent, strict=True)]
        ratios = [c.norm() / a.norm() for c, a in zip(carried, v, strict=True)]
        if torch.stack(ratios).mean() > 1:
            return None
        v = [c + s for c, s in zip(carried, slope, strict=True)]
    return v
