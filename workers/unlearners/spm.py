"""SPM: a one-dimensional membrane over the model, opened by prompts about the concept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, OutputSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.diffusion.denoise import NoisePredictor
    from workers.editing.adapters import GatedLora
    from workers.erasure.stops import Stop, Stops
    from workers.interfaces.pipeline import Pipeline


class SPMSettings(OutputSettings):
    """The membrane and what holds the rest in place.

    Tuned to the shapes base: sweeps/tuning/spm.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "variant": "released", "prompts": "bare", "learning_rate": 1e-4,
            "weight_decay": 1e-2, "iterations": 3000, "batch_size": 1, "warmup_steps": 500,
            "cycles": 3, "rank": 1, "scale": 1.0, "negative_guidance": 1.0, "anchors": 4,
            "anchor_weight": 1000.0, "start_guidance": 3.0, "sampler_steps": 30,
            "sizes": "smaller",
        }, "released", "Con6924/SPM at 3dd762e, the training script's configuration; AdamW in "
           "place of its 8-bit form"),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper", description="as the paper says, or as the released code computes"
    )
    iterations: int = Field(75, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-2, gt=0, description="AdamW's learning rate at its highest")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's weight decay")
    warmup_steps: int = Field(15, ge=0, description="steps of linear warm-up, from a rate of 0")
    cycles: int = Field(1, ge=1, description="cosine decays after the warm-up, each from the top")
    rank: int = Field(1, ge=1, description="rank of each adapter; 1 in the paper")
    scale: float = Field(1.0, gt=0, description="what the adapters' output is multiplied by")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    anchors: int = Field(1, ge=1, description="latent anchors of every latent; 4 as released")
    anchor_weight: float = Field(3.0, ge=0, description="weight of the latent anchors' term")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=2, description="DDIM steps of the partial denoising")
    sizes: Literal["base", "smaller"] = Field(
        "base",
        description="of the latents: the base's own, or smaller: height and width each 4 to 7 "
        "eighths of it, drawn every step",
    )


class SPM(Unlearner):
    """Rank-1 adapters that erase, and a gate that opens them only for the concept's prompts.

    SPM (Lyu et al., "One-dimensional Adapter to Rule Them All", CVPR 2024). On every Linear and
    Conv2d inside transformer blocks: MSE(ε_spm(c), ε*(∅) - η (ε*(c) - ε*(∅))) + w · MSE(ε_spm(c_a),
    ε*(c_a)), where the anchors c_a are Gaussian tensors of the concept's embedding's norm times
    U(0.8, 1.2), accepted with probability 1 - cos. The result is the adapters with their gate
    ("Facilitated Transport"): without it, it would not be SPM's.

    `released` is what the code does: half of the anchors are lost, and ∅ stands in their place
    (`counted`); x_t is evaluated at a time step above its own (`released_stops`); and the gate acts
    squared, since it multiplies both factors (`GatedLora`). `paper` is without the three.
    """

    name = "spm"
    version = 3
    joint = True
    jointly = "an adapter a concept, each trained alone, all in place together, as published"
    trains_each = True
    paper = "Lyu et al., CVPR 2024"
    golden = "layers, anchors' share of the loss, three steps of training, gate, rate, time steps"
    Settings = SPMSettings
    settings: SPMSettings

    def passes(self) -> int:
        """Drawing, two teacher passes, a trained one, and the anchors'."""
        from workers.erasure.stops import drawing_passes

        s = self.settings
        kept = len(counted(s.anchors, s.variant))
        each = drawing_passes(s.sampler_steps, s.batch_size) + (5 + 4 * kept) * s.batch_size
        return s.iterations * each

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train each concept's adapters as if it were the only one; the UNet's weights stay."""
        count = len(erasure.targets)
        made = [
            self._one(replace(erasure, targets=(target,)), number, count)
            for number, target in enumerate(erasure.targets)
        ]
        loss = sum(loss for _, loss in made) / count
        return Unlearned([membrane for membrane, _ in made], {"loss": loss})

    def _one(self, erasure: Erasure, number: int, count: int) -> tuple[GatedLora, float]:
        """The adapters with their gate, and the last loss, of one of `count` concepts."""
        from workers.diffusion.denoise import predictor
        from workers.diffusion.text import embed
        from workers.editing.adapters import GatedLora
        from workers.erasure.negative_guidance import draw, draw_rows
        from workers.erasure.stops import at_the_samplers_steps
        from workers.training.optimise import from_loss, minimise, one_of

        s, pipe = self.settings, erasure.pipe
        membrane = GatedLora.new(pipe.unet, erasure.concept, s.rank, s.scale, erasure.seed)
        predict = predictor(pipe, s.loss_in)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        high = pipe.scheduler.config.num_train_timesteps
        stops = released_stops(high) if s.variant == "released" else at_the_samplers_steps

        def loss(step: int) -> Tensor:
            text = draw_rows(prompts, s.batch_size, erasure.seed, step)
            anchors = latent_anchors(text, s.anchors, erasure.seed, step)
            stay = with_empty(anchors, empty, s.variant)
            shape = smaller_shape(pipe, erasure.seed, step) if s.sizes == "smaller" else None
            at = draw(erasure, s, pipe.unet, text, empty, step, stops, shape=shape)
            erased, kept = terms(predict, membrane, at, text, empty, stay, s.negative_guidance)
            return erased + s.anchor_weight * kept

        with membrane.on(pipe):
            mean = minimise(
                erasure, s, membrane.parameters(), from_loss(loss), weight_decay=s.weight_decay,
                rate=lambda step: s.learning_rate * self.rate(step),
                **one_of(number, count, s.iterations),
            )  # fmt: skip
        return membrane.gated(s.variant), mean

    def rate(self, step: int) -> float:
        """Share of the highest rate: linear warm-up from 0, then cosine decays with restarts."""
        s = self.settings
        if step < s.warmup_steps:
            return step / s.warmup_steps
        done = (step - s.warmup_steps) / max(1, s.iterations - s.warmup_steps)
        return (1 + math.cos(math.pi * (done * s.cycles % 1))) / 2


def terms(
    predict: NoisePredictor,
    membrane: GatedLora,
    at: tuple[Tensor, int],
    text: Tensor,
    empty: Tensor,
    stay: Tensor,
    eta: float,
) -> tuple[Tensor, Tensor]:
    """The erasing and the anchoring mean square, with their graphs.

    At x_t (n, c, h, w) and t: `text` (n, tokens, width) is erased towards away from ∅ (tokens,
    width), and the k texts a latent of `stay` (n, k, tokens, width) are to change nothing.
    """
    import torch
    from torch.nn import functional

    from workers.erasure.negative_guidance import erased_noise

    latents, timestep = at
    again, others = latents.repeat_interleave(stay.shape[1], dim=0), stay.flatten(0, 1)
    with torch.no_grad(), membrane.off():
        target = erased_noise(predict, latents, timestep, text, empty, eta)
        before = predict(again, timestep, others)
    erased = functional.mse_loss(predict(latents, timestep, text), target)
    return erased, functional.mse_loss(predict(again, timestep, others), before)


def counted(anchors: int, variant: Literal["paper", "released"]) -> list[int]:
    """Which anchors count, by their index; -1 is ∅.

    The released code lists the pairs (∅, anchor) one after another and takes the second half of
    that list as if it were the conditional half of a guided batch: of four anchors ∅, the third, ∅
    and the fourth.
    """
    if variant == "paper":
        return list(range(anchors))
    listed = [each for anchor in range(anchors) for each in (-1, anchor)]
    return listed[anchors:]


def with_empty(anchors: Tensor, empty: Tensor, variant: Literal["paper", "released"]) -> Tensor:
    """Of anchors (n, k, tokens, width) those that count, ∅ (tokens, width) among them."""
    import torch

    which = counted(anchors.shape[1], variant)
    nothing = empty.expand_as(anchors[:, 0])
    return torch.stack([nothing if w < 0 else anchors[:, w] for w in which], dim=1)


def latent_anchors(text: Tensor, count: int, seed: int, step: int) -> Tensor:
    """Embeddings (n, count, tokens, width) that stand for everything but `text` (n, tokens, width).

    Gaussian tensors, each scaled as a whole to the text's whole norm times U(0.8, 1.2), and drawn
    again until it passes with probability 1 - cos to the text.
    """
    import torch

    from workers.diffusion.rng import generator, normal

    wanted = text.repeat_interleave(count, dim=0)
    found, turn = torch.zeros_like(wanted), 0
    is_open = torch.ones(len(wanted), dtype=torch.bool, device=text.device)
    while is_open.any():
        at = (seed, step, f"anchors {turn}")
        share, lucky = torch.rand(2, len(wanted), generator=generator(*at)).to(text.device)
        drawn = normal(wanted.shape, *at, text.device)
        norms = wanted.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
        drawn = drawn * ((0.8 + 0.4 * share) * norms)[:, None, None]
        near = torch.cosine_similarity(drawn.flatten(1), wanted.flatten(1))
        passes = is_open & (lucky < 1 - near)
        found[passes] = drawn[passes]
        is_open, turn = is_open & ~passes, turn + 1
    return found.view(len(text), count, *text.shape[1:])


def released_stops(high: int) -> Stops:
    """Where x_t may be taken as released, for time steps below `high`.

    The sampler has no offset; after k of N steps, k in 1 … N - 1, x_t is evaluated at
    high - 1 - ⌊high · k / N⌋, above the level at which it stands.
    """
    from workers.erasure.stops import Stop

    def stops(timesteps: Sequence[int], spacing: int) -> list[Stop]:
        steps, offset = len(timesteps), timesteps[-1]
        walked = [t - offset for t in timesteps]
        late = [high - 1 - high * k // steps for k in range(steps)]
        return [Stop(walked[:k], range(late[k], late[k] + 1)) for k in range(1, steps)]

    return stops


def smaller_shape(pipe: Pipeline, seed: int, step: int) -> tuple[int, int, int]:
    """(channels, height, width) of a step's latents, 4 to 7 eighths of the base's a side: 256 to
    448 pixels of 512.
    """
    from workers.diffusion.denoise import latent_shape
    from workers.diffusion.rng import integers

    channels, *sides = latent_shape(pipe)
    eighths = 4 + integers(4, 2, seed, step, "size")
    height, width = (side * int(n) // 8 for side, n in zip(sides, eighths, strict=True))
    return channels, height, width
