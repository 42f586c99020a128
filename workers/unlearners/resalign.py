"""ResAlign: unlearn so that ordinary fine-tuning does not bring the concept back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    from torch import Tensor

    from workers.erasure.relabel import PictureSet


class ResAlignSettings(AnchoredSettings):
    """The simulated fine-tunes and the weights of the three terms.

    Tuned to the shapes base: sweeps/tuning/resalign.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 2e-4, "iterations": 160, "batch_size": 1, "rank": 4,
            "simulations": 3, "min_simulated_steps": 5, "max_simulated_steps": 30,
            "simulated_rates": (1e-6, 1e-5, 1e-4),
            "resilience_weight": 0.8, "retain_weight": 1.6, "final_retain_weight": 2.0,
            "anchor": "a person wearing clothes",
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(40, ge=1, description="optimiser steps")
    learning_rate: float = Field(3e-3, gt=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="pictures per step")
    rank: int = Field(4, ge=1, description="rank of the LoRA that is learned")
    resilience_weight: float = Field(0.8, ge=0, description="λ, weight of L(θ*) - L(θ)")
    retain_weight: float = Field(1.6, ge=0, description="β at the first iteration")
    final_retain_weight: float = Field(2.0, ge=0, description="β at the last iteration")
    simulations: int = Field(1, ge=1, description="simulated fine-tunes per iteration")
    min_simulated_steps: int = Field(2, ge=1, description="shortest simulated fine-tune")
    max_simulated_steps: int = Field(5, ge=1, description="longest simulated fine-tune")
    simulated_rates: tuple[float, ...] = Field(
        (1e-4, 3e-4, 1e-3), min_length=1, description="learning rates to simulate"
    )
    simulated_on: Literal["forget", "retain", "both"] = Field(
        "both", description="pictures of the simulated fine-tunes"
    )
    fixed_point_steps: int = Field(5, ge=0, description="steps of the hypergradient's solution")


@dataclass(frozen=True)
class Simulation:
    """A way of fine-tuning: which weights move, by which rule."""

    adapter: str
    optimizer: str
    learning_rate: float
    steps: int


class ResAlign(PictureUnlearner):
    """Unlearn with a LoRA while simulated fine-tunes try to undo it.

    ResAlign (Li et al., NeurIPS 2025): min L(θ) + λ (L(θ*) - L(θ)) + β R(θ) with θ* = argmin of
    L_ft(p) + ½‖p - θ‖², a Moreau envelope of fine-tuning. Simulated fine-tunes (full or LoRA, SGD
    or Adam, several rates and lengths) stand for the argmin; the hypergradient
    (I + ∇²L_ft(θ*))⁻¹ ∇L(θ*) comes from fixed-point steps h ← ∇L(θ*) - ∇²L_ft(θ*) h. L relabels
    on the concept's pictures, R is the ordinary loss on retained ones, and θ are the attention
    projections, moved by a LoRA of the given rank. β grows linearly to its final value.
    """

    name = "resalign"
    version = 1
    uses = frozenset({"retained", "anchors"})
    paper = "Li et al., NeurIPS 2025"
    Settings = ResAlignSettings
    settings: ResAlignSettings

    def configurations(self) -> list[tuple[str, str, float]]:
        """(adapter, optimiser, rate) of every simulated fine-tune."""
        rates = self.settings.simulated_rates
        return list(product(("full", "lora"), ("sgd", "adam"), rates))

    def passes(self) -> int:
        """The three losses, and each simulation with its hypergradient."""
        s = self.settings
        steps = (s.min_simulated_steps + s.max_simulated_steps) / 2
        each = 8 + s.simulations * (3 * steps + 4 + 6 * s.fixed_point_steps)
        return int(s.iterations * each * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the LoRA."""
        import torch

        from workers.editing.edits import LowRank, snapshot
        from workers.training.optimise import minimise

        s = self.settings
        space = LoraSpace(erasure, s.rank, s.gradient_checkpointing)
        # The UNet's own checkpointing would run forward again without the weights of `space`.
        plain_settings = s.model_copy(update={"gradient_checkpointing": False})
        losses = Losses(erasure, space, s)

        def backward(step: int) -> Tensor:
            theta = space.weights()
            gone, kept = losses.forget(theta, step, 0), losses.retain(theta, step)
            done = step / max(1, s.iterations - 1)
            beta = s.retain_weight + done * (s.final_retain_weight - s.retain_weight)
            plain = (1 - s.resilience_weight) * gone + beta * kept
            slopes = list(torch.autograd.grad(plain, theta))
            for turn in range(s.simulations):
                beyond = self._beyond(erasure, losses, theta, step, turn)
                for slope, more in zip(slopes, beyond, strict=True):
                    slope += s.resilience_weight / s.simulations * more
            space.pull_back(slopes)
            return plain.detach()

        mean = minimise(erasure, plain_settings, space.parameters, backward, weight_decay=1e-2)
        factors = {
            path: tuple(snapshot(space.parameters[f"{path}.{part}"]) for part in ("down", "up"))
            for path in space.paths
        }
        return Unlearned([LowRank(factors)], {"loss": mean})  # type: ignore[arg-type]

    def _beyond(
        self, erasure: Erasure, losses: Losses, theta: Sequence[Tensor], step: int, turn: int
    ) -> Sequence[Tensor]:
        """∂L(θ*)/∂θ for one simulated fine-tune."""
        simulation = self._simulation(erasure.seed, step, turn)
        reached = simulate(
            lambda weights, t: losses.finetune(weights, step, f"{turn}.{t}"), theta, simulation
        )
        return hypergradient(
            lambda weights: losses.forget(weights, step, turn + 1),
            lambda weights: losses.finetune(weights, step, f"{turn}.end"),
            reached,
            self.settings.fixed_point_steps,
        )

    def _simulation(self, seed: int, step: int, turn: int) -> Simulation:
        from workers.diffusion.rng import integers

        s, ways = self.settings, self.configurations()
        which = int(integers(len(ways), 1, seed, step, f"simulation {turn}"))
        low, high = sorted((s.min_simulated_steps, s.max_simulated_steps))
        steps = low + int(integers(high - low + 1, 1, seed, step, f"simulated steps {turn}"))
        return Simulation(*ways[which], steps)


class LoraSpace:
    """The attention projections' weights as functions of a LoRA's factors, and the UNet in them."""

    def __init__(self, erasure: Erasure, rank: int, is_checkpointed: bool = False) -> None:
        import math

        import torch
        from torch import nn

        from workers.diffusion.denoise import training_scheduler
        from workers.diffusion.lora import projections
        from workers.diffusion.rng import generator

        self.pipe, self.is_checkpointed = erasure.pipe, is_checkpointed
        self.scheduler = training_scheduler(erasure.pipe)
        layers = projections(erasure.pipe.unet)
        self.paths = tuple(layers)
        self.base = [layer.weight for layer in layers.values()]
        self.parameters: dict[str, nn.Parameter] = {}
        for path, layer in layers.items():
            outputs, inputs = layer.weight.shape
            draw = generator(erasure.seed, 0, f"resalign {path}")
            down = nn.init.kaiming_uniform_(
                torch.empty(rank, inputs), a=math.sqrt(5), generator=draw
            )
            device = layer.weight.device
            self.parameters[f"{path}.down"] = nn.Parameter(down.to(device))
            self.parameters[f"{path}.up"] = nn.Parameter(torch.zeros(outputs, rank, device=device))

    def weights(self) -> list[Tensor]:
        """The projections' weights now: leaves, whose gradients `pull_back` carries on."""
        found = []
        for path, base in zip(self.paths, self.base, strict=True):
            down, up = self.parameters[f"{path}.down"], self.parameters[f"{path}.up"]
            found.append((base + up @ down).detach().requires_grad_(True))
        return found

    def pull_back(self, slopes: Sequence[Tensor]) -> None:
        """Gradients of the weights (G) to those of the factors: upᵀ G and G downᵀ."""
        for path, slope in zip(self.paths, slopes, strict=True):
            down, up = self.parameters[f"{path}.down"], self.parameters[f"{path}.up"]
            # Under autocast a product comes in half precision.
            down.grad = (up.detach().T @ slope).to(down.dtype)
            up.grad = (slope @ down.detach().T).to(up.dtype)

    def predict(
        self, weights: Sequence[Tensor], latents: Tensor, timesteps: Tensor, text: Tensor
    ) -> Tensor:
        """ε with the given projections. Checkpointed, a pass keeps nothing and runs again."""
        from torch.utils.checkpoint import checkpoint

        from workers.runtime.parts import by_parts, part_size

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

        from workers.diffusion.denoise import to_noise

        values = {f"{path}.weight": value for path, value in zip(self.paths, weights, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            out = functional_call(
                self.pipe.unet, values, (latents, timesteps), {"encoder_hidden_states": text}
            ).sample
        return to_noise(self.scheduler, out, latents, timesteps)


class Losses:
    """L, R and L_ft as functions of the projections' weights."""

    def __init__(self, erasure: Erasure, space: LoraSpace, settings: ResAlignSettings) -> None:
        from workers.diffusion.text import embed
        from workers.erasure.relabel import PictureSet, counterparts

        self.space, self.seed = space, erasure.seed
        self.count, self.simulated_on = settings.batch_size, settings.simulated_on
        pipe, pictures = erasure.pipe, erasure.materials["forget"]
        others = counterparts(pictures.prompts, erasure.prompts, erasure.anchor_prompts)
        self.forgotten, self.anchor = PictureSet.of(pipe, pictures), embed(pipe, others)
        self.retained = PictureSet.of(pipe, erasure.materials["retain"])

    def forget(self, weights: Sequence[Tensor], step: int, turn: int) -> Tensor:
        """Relabelling towards the original's prediction for the anchor."""
        import torch
        from torch.nn import functional

        batch = self.forgotten.batch(self.count, self.seed, step, f"forget {turn}")
        at = (batch.noisy, batch.timesteps)
        with torch.no_grad():
            target = self.space.predict(self.space.base, *at, self.anchor[batch.rows])
        found = self.space.predict(weights, *at, self.forgotten.text[batch.rows])
        return functional.mse_loss(found, target)

    def retain(self, weights: Sequence[Tensor], step: int) -> Tensor:
        """The ordinary loss on retained pictures."""
        return self._ordinary(weights, self.retained, step, "retain")

    def finetune(self, weights: Sequence[Tensor], step: int, turn: str) -> Tensor:
        """The ordinary loss on what a simulated fine-tune sees."""
        if self.simulated_on == "both":
            return 0.5 * (
                self._ordinary(weights, self.forgotten, step, f"simulated {turn}")
                + self._ordinary(weights, self.retained, step, f"simulated {turn}")
            )
        data = self.forgotten if self.simulated_on == "forget" else self.retained
        return self._ordinary(weights, data, step, f"simulated {turn}")

    def _ordinary(
        self, weights: Sequence[Tensor], data: PictureSet, step: int, stream: str
    ) -> Tensor:
        from torch.nn import functional

        batch = data.batch(self.count, self.seed, step, stream)
        found = self.space.predict(weights, batch.noisy, batch.timesteps, data.text[batch.rows])
        return functional.mse_loss(found, batch.noise)


def simulate(
    loss: Callable[[Sequence[Tensor], int], Tensor], theta: Sequence[Tensor], how: Simulation
) -> list[Tensor]:
    """θ*: where a short fine-tune from θ leads; leaves with gradients.

    "lora" moves each matrix through fresh factors of rank 4, as U (V) with V fixed at random.
    """
    import torch
    from torch import nn

    from workers.diffusion.rng import normal

    base = [value.detach() for value in theta]
    if how.adapter == "full":
        moving = [nn.Parameter(torch.zeros_like(value)) for value in base]

        def weights() -> list[Tensor]:
            return [b + m for b, m in zip(base, moving, strict=True)]

    else:
        rank = 4
        fixed = [
            normal((rank, b.shape[1]), 0, i, "simulated lora", b.device) / b.shape[1] ** 0.5
            for i, b in enumerate(base)
        ]
        moving = [nn.Parameter(b.new_zeros(len(b), rank)) for b in base]

        def weights() -> list[Tensor]:
            return [b + m @ f for b, m, f in zip(base, moving, fixed, strict=True)]

    rule = torch.optim.SGD if how.optimizer == "sgd" else torch.optim.Adam
    optimizer = rule(moving, lr=how.learning_rate)
    for step in range(how.steps):
        gradients = torch.autograd.grad(loss(weights(), step), moving)
        for value, gradient in zip(moving, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
    return [value.detach().requires_grad_(True) for value in weights()]


def hypergradient(
    outer: Callable[[Sequence[Tensor]], Tensor],
    inner: Callable[[Sequence[Tensor]], Tensor],
    reached: Sequence[Tensor],
    steps: int,
) -> Sequence[Tensor]:
    """(I + ∇²inner)⁻¹ ∇outer at θ* = `reached`, by fixed-point steps h ← g - ∇²inner · h."""
    import torch

    slope = torch.autograd.grad(outer(reached), reached)
    if steps == 0:
        return slope
    curve = torch.autograd.grad(inner(reached), reached, create_graph=True)
    found = slope
    for _ in range(steps):
        bent = torch.autograd.grad(curve, reached, grad_outputs=found, retain_graph=True)
        found = tuple(g - b for g, b in zip(slope, bent, strict=True))
    return found
