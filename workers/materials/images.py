"""Pictures that the model draws of given prompts: anchor images, images to forget, to retain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.erasure.materials import Pictures
from workers.interfaces.material import Made, Material, Work

if TYPE_CHECKING:
    from torch import Tensor

NOISE_SEED = 1_000_003
"""Not the evaluation's: no method is to train on the noise that it is judged by."""


class ImagesSettings(Settings):
    """How the pictures are drawn."""

    ONLY_MEMORY = frozenset({"batch_size"})

    images_per_prompt: int = Field(4, ge=1, description="pictures of each prompt")
    guidance: float = Field(7.5, ge=0, description="guidance scale")
    sampler_steps: int = Field(50, ge=1, description="DDIM steps")
    batch_size: int = Field(16, ge=1, description="pictures per forward pass")


class Images(Material):
    """Pictures of given prompts, and their latents (the mode of the autoencoder's posterior)."""

    name = "images"
    version = 1
    Settings = ImagesSettings
    settings: ImagesSettings

    def make(self, work: Work) -> Made:
        """Draw them prompt by prompt."""
        import torch

        from workers.diffusion.latents import encode_images
        from workers.diffusion.sampling import sample_floats
        from workers.interfaces.dataset import Examples
        from workers.recipes import SampleSettings

        s, prompts = self.settings, list(work.asked["prompts"])
        how = SampleSettings(
            images_per_prompt=s.images_per_prompt, guidance=s.guidance, batch_size=s.batch_size,
            sampler_steps=s.sampler_steps, noise_seed=NOISE_SEED,
        )  # fmt: skip
        at_once = max(1, s.batch_size // s.images_per_prompt)
        images, latents = [], []
        for start in range(0, len(prompts), at_once):
            drawn = sample_floats(work.pipe, prompts[start : start + at_once], how)
            pixels = (drawn * 255).round().to(torch.uint8)
            images.append(pixels)
            rows = pixels.permute(0, 2, 3, 1).numpy()
            latents.append(encode_images(work.pipe, Examples(rows, ("",) * len(rows))).cpu())
            work.progress(min(start + at_once, len(prompts)), len(prompts), {})
        return Made({"images": torch.cat(images), "latents": torch.cat(latents)})

    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Pictures:
        """The pictures with their prompts."""
        each = self.settings.images_per_prompt
        prompts = [prompt for prompt in asked["prompts"] for _ in range(each)]
        return Pictures(tensors["latents"], tensors["images"], prompts)
