"""SPM: a one-dimensional membrane over the model, opened by prompts about the concept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor


class SPMSettings(TrainSettings):
    """The membrane and what holds the rest in place.

    Tuned to the shapes base: sweeps/tuning/spm.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 1e-4, "iterations": 3000, "batch_size": 1, "warmup_steps": 500,
            "cycles": 3, "anchor_weight": 1000.0, "sampler_steps": 30,
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(75, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-2, gt=0, description="AdamW's learning rate at its highest")
    warmup_steps: int = Field(15, ge=0, description="steps of linear warm-up")
    cycles: int = Field(1, ge=1, description="cosine decays after the warm-up, each from the top")
    rank: int = Field(1, ge=1, description="rank of each adapter; 1 in the paper")
    scale: float = Field(1.0, gt=0, description="what the adapters' output is multiplied by")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    anchor_weight: float = Field(10.0, ge=0, description="weight of the latent anchors' term")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class SPM(Unlearner):
    """Rank-1 adapters that erase, and a gate that opens them only for the concept's prompts.

    SPM (Lyu et al., "One-dimensional Adapter to Rule Them All", CVPR 2024). On every Linear and
    Conv2d inside transformer blocks: MSE(ε_spm(c), ε*(∅) - η (ε*(c) - ε*(∅))) + w · MSE(ε_spm(c_a),
    ε*(c_a)), where the anchors c_a are Gaussian embeddings of the concept's norm times U(0.8, 1.2),
    accepted with probability 1 - cos. The result is the adapters with their gate ("Facilitated
    Transport"): without it, it would not be SPM's.
    """

    name = "spm"
    version = 1
    paper = "Lyu et al., CVPR 2024"
    Settings = SPMSettings
    settings: SPMSettings

    def passes(self) -> int:
        """Drawing, two teacher passes, a trained one, and the anchors'."""
        from workers.erasure.negative_guidance import drawing_passes

        s = self.settings
        return s.iterations * (drawing_passes(s.sampler_steps, s.batch_size) + 9 * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the adapters; the UNet's weights stay."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import embed
        from workers.editing.adapters import GatedLora
        from workers.erasure.negative_guidance import draw, draw_rows, erased_noise
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        membrane = GatedLora.new(pipe.unet, erasure.concept, s.rank, s.scale, erasure.seed)
        predict = noise_predictor(pipe)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]

        def loss(step: int) -> Tensor:
            text = draw_rows(prompts, s.batch_size, erasure.seed, step)
            anchors = latent_anchors(text, erasure.seed, step)
            latents, timestep = draw(erasure, s, pipe.unet, text, empty, step)
            with torch.no_grad(), membrane.off():
                target = erased_noise(predict, latents, timestep, text, empty, s.negative_guidance)
                stay = predict(latents, timestep, anchors)
            erased = functional.mse_loss(predict(latents, timestep, text), target)
            kept = functional.mse_loss(predict(latents, timestep, anchors), stay)
            return erased + s.anchor_weight * kept

        with membrane.on(pipe):
            mean = minimise(
                erasure, s, membrane.parameters(), from_loss(loss), weight_decay=0.0,
                rate=lambda step: s.learning_rate * self._rate(step),
            )  # fmt: skip
        return Unlearned([membrane.gated()], {"loss": mean})

    def _rate(self, step: int) -> float:
        """Share of the highest rate: linear warm-up, then cosine decays with restarts."""
        s = self.settings
        if step < s.warmup_steps:
            return (step + 1) / s.warmup_steps
        done = (step - s.warmup_steps) / max(1, s.iterations - s.warmup_steps)
        return (1 + math.cos(math.pi * (done * s.cycles % 1))) / 2


def latent_anchors(text: Tensor, seed: int, step: int, candidates: int = 4) -> Tensor:
    """Embeddings of the shape of `text` (n, tokens, width) that stand for everything else.

    Gaussian directions at each token's own norm times U(0.8, 1.2); of a few candidates the first
    that passes with probability 1 - |cos| to the concept, the last if none does.
    """
    import torch

    from workers.diffusion.rng import generator, normal

    n = len(text)
    drawn = normal((candidates, *text.shape), seed, step, "anchors", text.device)
    draw = generator(seed, step, "anchors accepted")
    scale = (0.8 + 0.4 * torch.rand(candidates, n, generator=draw)).to(text.device)
    lucky = torch.rand(candidates, n, generator=draw).to(text.device)
    drawn = torch.nn.functional.normalize(drawn, dim=-1) * text.norm(dim=-1, keepdim=True)
    drawn = drawn * scale[..., None, None]
    near = torch.nn.functional.cosine_similarity(drawn.flatten(2), text.flatten(1)[None], dim=-1)
    accepted = lucky < 1 - near.abs()
    accepted[-1] = True
    first = accepted.float().argmax(dim=0)
    chosen: torch.Tensor = drawn[first, torch.arange(n, device=text.device)]
    return chosen
