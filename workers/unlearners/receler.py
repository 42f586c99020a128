"""Receler: small erasers behind cross-attention, trained against adversarial prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class RecelerSettings(TrainSettings):
    """The erasers, their adversary, and where they may act.

    Tuned to the shapes base: sweeps/tuning/receler.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "learning_rate": 3e-4, "iterations": 500, "batch_size": 1, "rank": 128,
            "attack_steps": 50, "attack_rate": 0.1, "soft_tokens": 16, "sampler_steps": 50,
            "local_weight": 0.1,
        }, "ours", ""),
    }  # fmt: skip

    iterations: int = Field(50, ge=1, description="optimiser steps")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's learning rate")
    batch_size: int = Field(8, ge=1, description="latents per step")
    rank: int = Field(32, ge=1, description="width of each eraser; 128 in the paper")
    attack_steps: int = Field(3, ge=0, description="steps of the adversary, every iteration")
    attack_rate: float = Field(0.1, gt=0, description="the adversary's learning rate (AdamW)")
    attack_decay: float = Field(0.1, ge=0, description="the adversary's weight decay")
    soft_tokens: int = Field(4, ge=1, description="learned tokens of the adversarial prompt")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    local_weight: float = Field(
        2e-3, ge=0, description="weight of what is added outside the mask; 0.1 in the paper"
    )
    mask_threshold: float = Field(0.1, ge=0, le=1, description="of the attention, scaled to [0, 1]")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class Receler(Unlearner):
    """Bottleneck adapters after each cross-attention, erasing locally and against an adversary.

    Receler (Huang et al., "Reliable Concept Erasing of Text-to-Image Diffusion Models via
    Lightweight Erasers", ECCV 2024). Every iteration learns soft tokens before the prompt that
    make the erased model answer as the original does to the concept; then ESD's loss at that
    prompt, plus w · Σ ‖added · (1 - M)‖² / area, with M where the original's cross-attention looks
    at the concept's words (maps of a sixteenth of the latents' pixels: 16 × 16 for 64 × 64).
    """

    name = "receler"
    version = 1
    paper = "Huang et al., ECCV 2024"
    Settings = RecelerSettings
    settings: RecelerSettings

    def passes(self) -> int:
        """Drawing, teacher and mask, the adversary, the trained pass."""
        from workers.erasure.negative_guidance import drawing_passes

        s = self.settings
        each = 3 + 3 * s.attack_steps + 3
        return s.iterations * (drawing_passes(s.sampler_steps, s.batch_size) + each * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the erasers; the UNet's weights stay."""
        import torch
        from torch.nn import functional

        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import encode, new_soft, token_ids
        from workers.diffusion.text import embed, subject_words
        from workers.editing.adapters import Bottlenecks
        from workers.erasure.adversary import Adversary
        from workers.erasure.negative_guidance import draw, erased_noise
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        erasers = Bottlenecks.new(pipe.unet, s.rank, erasure.seed)
        predict = noise_predictor(pipe)
        adversary = Adversary(s.attack_steps, s.attack_rate, "adam", s.attack_decay)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        words = subject_words(pipe, erasure.prompts, erasure.concept)
        ids = token_ids(pipe, erasure.prompts, s.soft_tokens)

        def loss(step: int) -> Tensor:
            rows = integers(len(prompts), s.batch_size, erasure.seed, step, "prompts", pipe.device)
            text = prompts[rows]
            latents, timestep = draw(erasure, s, pipe.unet, text, empty, step)
            height, width = latents.shape[-2:]
            with erasers.off():
                with torch.no_grad(), recorded(pipe.unet) as maps:
                    concept = predict(latents, timestep, text)
                mask = object_mask(maps, words[rows], height, width, s.mask_threshold)
                target = erased_noise(predict, latents, timestep, text, empty, s.negative_guidance)
            asked = ids[rows]
            start = new_soft(pipe, len(asked), s.soft_tokens, erasure.seed, step, "soft prompt")
            here = (latents, timestep, concept)
            soft = adversary.find(pipe, predict, lambda _: here, asked, start)
            with torch.no_grad():
                adversarial = encode(pipe, asked, soft)
            with erasers.recorded() as added:
                erased = functional.mse_loss(predict(latents, timestep, adversarial), target)
            return erased + s.local_weight * outside(added, mask)

        with erasers.on(pipe):
            mean = minimise(erasure, s, erasers.parameters(), from_loss(loss))
        return Unlearned([Bottlenecks(erasers.tensors())], {"loss": mean})


def object_mask(
    maps: Mapping[str, Tensor], words: Tensor, height: int, width: int, threshold: float
) -> Tensor:
    """Mean attention to the words, scaled to [0, 1] and cut: fp32 (n, 1, rows, columns) in {0, 1}.

    Of the layers' maps (n, heads, pixels, tokens) those nearest to a sixteenth of height · width.
    """
    import torch

    from workers.diffusion.denoise import at_least_fp32

    goal = height * width / 16
    sizes = {probs.shape[2] for probs in maps.values()}
    size = min(sizes, key=lambda pixels: abs(pixels - goal))
    share = words.float()[:, None, None, :]
    chosen = [at_least_fp32(p) * share for p in maps.values() if p.shape[2] == size]
    seen = torch.stack([p.sum(dim=3).mean(dim=1) for p in chosen]).mean(dim=0)
    low, high = seen.amin(dim=1, keepdim=True), seen.amax(dim=1, keepdim=True)
    mask = ((seen - low) / (high - low).clamp_min(1e-12) > threshold).float()
    rows = round((size * height / width) ** 0.5)
    return mask.view(len(mask), 1, rows, size // rows)


def outside(added: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Σ over layers of ‖added · (1 - M)‖² / area; added (n, pixels, channels), the mean over n."""
    import torch
    from torch.nn import functional

    from workers.diffusion.denoise import at_least_fp32

    terms = []
    for values in added.values():
        pixels = values.shape[1]
        rows = round((pixels * mask.shape[2] / mask.shape[3]) ** 0.5)
        here = functional.interpolate(mask, (rows, pixels // rows), mode="nearest").flatten(2)
        away = at_least_fp32(values) * (1 - here.transpose(1, 2))
        terms.append(away.square().sum(dim=(1, 2)).mean() / pixels)
    return torch.stack(terms).sum()
