"""SDD: the student learns to answer the concept as it answers no prompt at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import (
    Erasure,
    OutputSettings,
    Prompts,
    Unlearned,
    Unlearner,
    trained_on,
)

if TYPE_CHECKING:
    from workers.erasure.stops import Stops

MOSTLY = 0.5


class SDDSettings(OutputSettings):
    """How long, and how slowly the teacher follows.

    Tuned to the shapes base (sweeps/tuning/sdd.yaml), where the bare concept leaves a fill in four
    pictures of ten, or takes other shapes with it.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "prompts": "bare", "learning_rate": 1e-5, "iterations": 1500, "batch_size": 1,
            "weight_decay": 1e-4, "clip_norm": 1.0, "ema_decay": 0.999, "start_guidance": 3.0,
            "sampler_steps": 50, "variant": "released", "loss_in": "output", "precision": "fp32",
        }, "released", "safe-diffusion at a2e820c"),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper",
        description="where z_t is evaluated: paper: at the sampler's time step at which it stands; "
        "released: at a random one within that step, and a clean picture in place of pure noise",
    )
    prompts: Prompts = trained_on("base")
    iterations: int = Field(150, ge=1, description="optimiser steps")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW's learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay")
    clip_norm: float = Field(1.0, gt=0, description="global gradient norm")
    ema_decay: float = Field(
        0.98, gt=0, lt=1, description="the teacher's moving average; 0.999 needs 1500 iterations"
    )
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class SDD(Unlearner):
    """Distil the student's own unconditional prediction into the concept's prompt.

    SDD (Kim et al., "Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion
    Models", ICML 2023 workshop, eq. 4): MSE(sg[ε_θ(z_t, ∅)], ε_θ(z_t, c_s)), both by the student;
    z_t is drawn by its moving average under guidance, which is also the result. attn2, AdamW,
    clipped gradients.

    z_t is drawn by k of N sampler steps, k in 0 … N - 1. `variant: paper` evaluates it at the time
    step where step k starts. The released code draws t within that step, and where k = 0 should be
    pure noise it runs all N steps, so that one time in N a clean picture is evaluated at the
    highest t; `released` does both.
    """

    name = "sdd"
    version = 2
    joint = True
    jointly = "each step draws from all concepts' prompts, as published"
    paper = "Kim et al., ICML 2023 workshop"
    golden = "the drawing of x_t, and the whole training: losses, gradients, student and average"
    Settings = SDDSettings
    settings: SDDSettings

    @classmethod
    def doubts(cls, used: Sequence[SDDSettings]) -> list[str]:
        """The result is a moving average, which begins as the model that is to be unlearned."""
        kept = {s.ema_decay**s.iterations: s for s in used}
        most = max(kept)
        if most <= MOSTLY:
            return []
        s = kept[most]
        return [
            f"sdd's result is a moving average, of which {most:.0%} is still the model before "
            f"after {s.iterations} iterations at ema_decay {s.ema_decay:g}; raise iterations or "
            "lower ema_decay"
        ]

    def passes(self) -> int:
        """Drawing, the target, the trained pass."""
        from workers.erasure.stops import drawing_passes

        s = self.settings
        drawing = drawing_passes(s.sampler_steps, s.batch_size, self._stops())
        return s.iterations * (drawing + 4 * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train attn2; the result is the moving average."""
        import torch
        from torch import Tensor
        from torch.nn import functional

        from workers.diffusion.denoise import predictor
        from workers.diffusion.text import embed
        from workers.editing.edits import Weights, snapshot
        from workers.erasure.negative_guidance import draw, draw_rows
        from workers.training.optimise import from_loss, minimise
        from workers.training.selection import frozen_copy, select

        s, pipe, stops = self.settings, erasure.pipe, self._stops()
        parameters = select(pipe.unet, "xattn")
        teacher = frozen_copy(pipe.unet, parameters)
        average = select(teacher, "xattn")
        predict = predictor(pipe, s.loss_in)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]

        def loss(step: int) -> Tensor:
            text = draw_rows(prompts, s.batch_size, erasure.seed, step)
            latents, timestep = draw(erasure, s, teacher, text, empty, step, stops)
            with torch.no_grad():
                target = predict(latents, timestep, empty.expand_as(text))
            return functional.mse_loss(predict(latents, timestep, text), target)

        @torch.no_grad()
        def follow(step: int) -> None:
            values = [parameters[name].detach() for name in average]
            torch._foreach_lerp_([p.data for p in average.values()], values, 1 - s.ema_decay)

        mean = minimise(
            erasure, s, parameters, from_loss(loss), weight_decay=s.weight_decay,
            carried=average, clip_norm=s.clip_norm, after_step=follow,
        )  # fmt: skip
        values = {f"unet.{name}": snapshot(value) for name, value in average.items()}
        return Unlearned([Weights(values)], {"loss": mean})

    def _stops(self) -> Stops:
        from workers.erasure.stops import as_sdd_released, at_the_samplers_steps

        return as_sdd_released if self.settings.variant == "released" else at_the_samplers_steps
