"""AdvUnlearn: a text encoder that no longer says the concept, whatever stands before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, OutputSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor

    from workers.diffusion.soft_prompt import Attack
    from workers.erasure.stops import Stops


_RELEASED = {
    "prompts": "bare", "variant": "released", "learning_rate": 1e-5, "iterations": 1000,
    "batch_size": 1, "warmup_iterations": 200, "attack_steps": 30, "attack_rate": 1e-3,
    "soft_tokens": 1, "retain_weight": 0.3, "retain_batch_size": 5, "negative_guidance": 1.0,
    "start_guidance": 3.0, "sampler_steps": 50,
}  # fmt: skip
_FROM = "OPTML-Group/AdvUnlearn at 9d23124, training script; what is preserved is the base's"


class AdvUnlearnSettings(OutputSettings):
    """The adversary, and what is held in place.

    Tuned to the shapes base: sweeps/tuning/advunlearn.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({**_RELEASED, "attack": "pgd"}, "released", _FROM),
        "sd-fast": Preset({**_RELEASED, "attack": "fast"}, "released", _FROM),
    }

    variant: Literal["paper", "released"] = Field(
        "paper", description="how the adversary searches and where x_t is taken"
    )
    iterations: int = Field(80, ge=1, description="optimiser steps")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's learning rate")
    batch_size: int = Field(8, ge=1, description="latents per step")
    warmup_iterations: int = Field(20, ge=0, description="iterations without an adversary")
    attack: Literal["pgd", "fast"] = Field(
        "fast", description="pgd: many steps; fast: signed gradients, in the paper's form one step"
    )
    attack_steps: int = Field(3, ge=1, description="steps of the adversary, every iteration")
    attack_rate: float = Field(1e-2, gt=0, description="the adversary's step size")
    soft_tokens: int = Field(1, ge=1, description="learned tokens before the prompt")
    retain_weight: float = Field(0.3, ge=0, description="weight of the retained prompts' term")
    retain_batch_size: int = Field(8, ge=1, description="retained prompts per step")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


KINDS: Mapping[tuple[str, str], Attack] = {
    ("paper", "pgd"): "sign",
    ("paper", "fast"): "fast",
    ("released", "pgd"): "accumulated",
    ("released", "fast"): "accumulated_sign",
}
"""`workers.diffusion.soft_prompt.attack`'s, by variant and attack."""


class AdvUnlearn(Unlearner):
    """ESD's loss in the text encoder, at prompts that an adversary prepends to.

    AdvUnlearn (Zhang et al., "Defensive Unlearning with Adversarial Training", NeurIPS 2024): the
    adversary finds a prefix embedding, from a random word's, with which the model predicts what the
    original does for the concept; the text encoder's layers and final norm, not its embeddings,
    then minimise ESD's loss at that prompt + w · MSE to the original on retained prompts. All
    targets, and x_t (the retained prompts' their own), come from the original; the UNet stays.

    The adversary of the variant "paper" takes signed steps (of the fast attack one) at the step's
    x_t. That of "released" draws a new x_t and t every step and gives Adam gradients that it never
    resets (their sign, if fast), and what it found before its last update counts; x_t is drawn and
    evaluated as in ESD's code of 2023 (`as_in_2023`).
    """

    name = "advunlearn"
    version = 3
    uses = frozenset({"retained"})
    joint = True
    jointly = "each step draws from all concepts' prompts, as published"
    paper = "Zhang et al., NeurIPS 2024"
    golden = "the drawing of x_t, both attacks, the loss and a step, with and without the adversary"
    Settings = AdvUnlearnSettings
    settings: AdvUnlearnSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The retained term needs prompts."""
        found = super().problems(base, concept)
        if self.settings.retain_weight and not self.preserved(base, concept):
            found.append(
                f"unlearner {self.name!r} trains on what should survive but the base retains "
                "nothing; name some concepts in the base's `retained` or the method's `preserve`, "
                "or set retain_weight: 0"
            )
        return found

    def passes(self) -> int:
        """Drawing, teachers, the adversary, two trained passes."""
        from workers.erasure.stops import drawing_passes

        s = self.settings
        stops = self._stops()
        drawing = drawing_passes(s.sampler_steps, s.batch_size, stops)
        each = drawing + 6 * s.batch_size
        if s.retain_weight:
            each += drawing_passes(s.sampler_steps, s.retain_batch_size, stops)
            each += 4 * s.retain_batch_size
        attack = 3 * s.batch_size
        if s.variant == "released":
            attack += drawing + s.batch_size
        turns = 1 if (s.variant, s.attack) == ("paper", "fast") else s.attack_steps
        return s.iterations * each + attack * turns * max(0, s.iterations - s.warmup_iterations)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the text encoder."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import encode, new_word, token_ids
        from workers.diffusion.text import embed
        from workers.erasure.adversary import Adversary
        from workers.erasure.negative_guidance import draw, erased_noise
        from workers.training.optimise import from_loss, train_weights

        s, pipe, stops = self.settings, erasure.pipe, self._stops()
        predict = predictor(pipe, s.loss_in)
        adversary = Adversary(s.attack_steps, s.attack_rate, KINDS[s.variant, s.attack])
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        retained = embed(pipe, erasure.retained_prompts) if s.retain_weight else None
        plain = token_ids(pipe, erasure.prompts, 0)
        roomy = token_ids(pipe, erasure.prompts, s.soft_tokens)
        kept_ids = token_ids(pipe, erasure.retained_prompts, 0) if s.retain_weight else None

        def asked(rows: Tensor, step: int, latents: Tensor, timestep: int) -> Tensor:
            if step < s.warmup_iterations:
                return encode(pipe, plain[rows])
            text = prompts[rows]

            def at(turn: int) -> tuple[Tensor, int, Tensor]:
                x_t, t = latents, timestep
                if s.variant == "released":
                    stream = f" attack {turn}"
                    x_t, t = draw(erasure, s, pipe.unet, text, empty, step, stops, stream)
                with torch.no_grad():
                    return x_t, t, predict(x_t, t, text)

            start = new_word(pipe, len(rows), s.soft_tokens, erasure.seed, step, "prefix")
            soft = adversary.find(pipe, predict, at, roomy[rows], start)
            return encode(pipe, roomy[rows], soft)

        def kept(step: int) -> Tensor | float:
            if retained is None or kept_ids is None:
                return 0.0
            more = integers(
                len(retained), s.retain_batch_size, erasure.seed, step, "retained", pipe.device
            )
            text = retained[more]
            latents, timestep = draw(
                erasure, s, pipe.unet, text, empty, step, stops, noise=" retained"
            )
            with torch.no_grad():
                stay = predict(latents, timestep, text)
            return functional.mse_loss(
                predict(latents, timestep, encode(pipe, kept_ids[more])), stay
            )

        def loss(step: int) -> Tensor:
            rows = integers(len(prompts), s.batch_size, erasure.seed, step, "prompts", pipe.device)
            text = prompts[rows]
            latents, timestep = draw(erasure, s, pipe.unet, text, empty, step, stops)
            target = erased_noise(predict, latents, timestep, text, empty, s.negative_guidance)
            found = predict(latents, timestep, asked(rows, step, latents, timestep))
            return functional.mse_loss(found, target) + s.retain_weight * kept(step)

        trained = {
            name: value
            for name, value in pipe.text_encoder.named_parameters()
            if "embeddings." not in name
        }
        return train_weights(erasure, s, trained, from_loss(loss), "text_encoder")

    def _stops(self) -> Stops:
        from workers.erasure.stops import as_in_2023, at_the_samplers_steps

        return as_in_2023 if self.settings.variant == "released" else at_the_samplers_steps
