"""AdvUnlearn: a text encoder that no longer says the concept, whatever stands before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor


class AdvUnlearnSettings(TrainSettings):
    """The adversary, and what is held in place.

    Tuned to the shapes base: sweeps/tuning/advunlearn.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 1e-5, "iterations": 1000, "batch_size": 1, "warmup_iterations": 200,
            "attack": "sign", "attack_steps": 30, "attack_rate": 1e-3, "sampler_steps": 50,
            "retain_batch_size": 5,
        }, "ours", ""),
        "sd-fast": Preset({
            "learning_rate": 1e-5, "iterations": 1000, "batch_size": 1, "warmup_iterations": 200,
            "attack": "fast", "attack_rate": 1e-3, "sampler_steps": 50, "retain_batch_size": 5,
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(80, ge=1, description="optimiser steps")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's learning rate")
    batch_size: int = Field(8, ge=1, description="latents per step")
    warmup_iterations: int = Field(20, ge=0, description="iterations without an adversary")
    attack: Literal["sign", "adam", "fast"] = Field(
        "fast", description="fast: one signed step; sign: many; adam: many of AdamW"
    )
    attack_steps: int = Field(3, ge=1, description="steps of the adversary, every iteration")
    attack_rate: float = Field(1e-2, gt=0, description="the adversary's step size")
    soft_tokens: int = Field(1, ge=1, description="learned tokens before the prompt")
    retain_weight: float = Field(0.3, ge=0, description="weight of the retained prompts' term")
    retain_batch_size: int = Field(8, ge=1, description="retained prompts per step")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class AdvUnlearn(Unlearner):
    """ESD's loss in the text encoder, at prompts that an adversary prepends to.

    AdvUnlearn (Zhang et al., "Defensive Unlearning with Adversarial Training", NeurIPS 2024): the
    adversary finds a prefix embedding with which the model predicts what the original does for the
    concept; the text encoder then minimises ESD's loss at that prompt + w · MSE to the original
    model on retained prompts. The UNet stays. The fast attack is one signed gradient step.
    """

    name = "advunlearn"
    version = 1
    uses = frozenset({"retained"})
    paper = "Zhang et al., NeurIPS 2024"
    Settings = AdvUnlearnSettings
    settings: AdvUnlearnSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The retained term needs prompts."""
        found = super().problems(base, concept)
        if self.settings.retain_weight and not base.retained(concept):
            found.append(
                f"unlearner {self.name!r} trains on what should survive but the base retains "
                "nothing; name some concepts in the base's `retained`, or set retain_weight: 0"
            )
        return found

    def passes(self) -> int:
        """Drawing, teachers, the adversary, two trained passes."""
        from workers.erasure.negative_guidance import drawing_passes

        s = self.settings
        turns = 1 if s.attack == "fast" else s.attack_steps
        each = drawing_passes(s.sampler_steps, s.batch_size) + 6 * s.batch_size
        each += 4 * s.retain_batch_size if s.retain_weight else 0
        attacks = 3 * turns * s.batch_size * max(0, s.iterations - s.warmup_iterations)
        return s.iterations * each + attacks

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the text encoder."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import encode, token_ids
        from workers.diffusion.text import embed
        from workers.erasure.adversary import Adversary
        from workers.erasure.negative_guidance import draw, erased_noise
        from workers.training.optimise import from_loss, train_weights

        s, pipe = self.settings, erasure.pipe
        predict = noise_predictor(pipe)
        adversary = Adversary(s.soft_tokens, s.attack_steps, s.attack_rate, s.attack)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        retained = embed(pipe, erasure.retained_prompts) if s.retain_weight else None
        plain = token_ids(pipe, erasure.prompts, 0)
        roomy = token_ids(pipe, erasure.prompts, s.soft_tokens)
        kept_ids = token_ids(pipe, erasure.retained_prompts, 0) if s.retain_weight else None
        parameters = dict(pipe.text_encoder.named_parameters())

        def loss(step: int) -> Tensor:
            at = (erasure.seed, step)
            rows = integers(len(prompts), s.batch_size, *at, "prompts", pipe.device)
            with torch.no_grad():
                text = encode(pipe, plain[rows])
            latents, timestep = draw(erasure, s, pipe.unet, text, empty, step)
            with torch.no_grad():
                concept = predict(latents, timestep, prompts[rows])
            target = erased_noise(
                predict, latents, timestep, prompts[rows], empty, s.negative_guidance
            )
            if step < s.warmup_iterations:
                asked = encode(pipe, plain[rows])
            else:
                soft = adversary.find(
                    erasure, predict, (latents, timestep), roomy[rows], concept, step, "prefix"
                )
                asked = encode(pipe, roomy[rows], soft)
            total = functional.mse_loss(predict(latents, timestep, asked), target)
            if retained is None or kept_ids is None:
                return total
            more = integers(len(retained), s.retain_batch_size, *at, "retained", pipe.device)
            there = latents[torch.arange(len(more), device=pipe.device) % len(latents)]
            with torch.no_grad():
                stay = predict(there, timestep, retained[more])
            kept = functional.mse_loss(predict(there, timestep, encode(pipe, kept_ids[more])), stay)
            return total + s.retain_weight * kept

        return train_weights(erasure, s, parameters, from_loss(loss), "text_encoder")
