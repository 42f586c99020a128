"""Which weights matter for drawing a concept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.erasure.materials import Pictures, pack
from workers.interfaces.material import Made, Material, Work

if TYPE_CHECKING:
    from torch import Tensor


class SaliencySettings(Settings):
    """How weights are scored, and how many are chosen."""

    score: Literal["gradient", "snip"] = Field(
        "gradient", description="gradient: |Σ g| (SalUn); snip: |Σ g| · |w| (Scissorhands)"
    )
    share: float = Field(0.5, gt=0, le=1, description="share of all weights that is chosen")
    batches: int = Field(10, ge=1, description="batches whose signed gradients are summed")
    batch_size: int = Field(16, ge=1, description="pictures per batch")


class Saliency(Material):
    """The weights of the UNet with the largest scores under the concept's denoising loss.

    SalUn (Fan et al., ICLR 2024, eq. 3) and SNIP (Lee et al., ICLR 2019). Gradients are summed
    with their sign over batches before the absolute value is taken, and the threshold is one for
    the whole UNet: the k-th value, not a sort.
    """

    name = "saliency"
    version = 1
    Settings = SaliencySettings
    settings: SaliencySettings

    def make(self, work: Work) -> Made:
        """Sum gradients, score, choose; no weight moves."""
        import torch

        parameters = dict(work.pipe.unet.named_parameters())
        try:
            self._sum_gradients(work)
            scores = {name: v.grad.abs() for name, v in parameters.items() if v.grad is not None}
        finally:
            work.pipe.unet.requires_grad_(False)
            work.pipe.unet.zero_grad(set_to_none=True)
        if self.settings.score == "snip":
            scores = {name: score * parameters[name].abs() for name, score in scores.items()}
        flat = torch.cat([score.flatten() for score in scores.values()])
        kept = max(1, round(self.settings.share * len(flat)))
        threshold = flat.kthvalue(len(flat) - kept + 1).values
        masks = {name: pack(score >= threshold) for name, score in scores.items()}
        return Made(masks, {"threshold": float(threshold), "weights": float(kept)})

    def _sum_gradients(self, work: Work) -> None:
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor, noised, training_scheduler
        from workers.diffusion.rng import integers
        from workers.diffusion.text import embed

        pictures: Pictures = work.source
        pipe, count = work.pipe, self.settings.batch_size
        text, latents = embed(pipe, pictures.prompts), pictures.latents.to(pipe.device)
        scheduler, predict = training_scheduler(pipe), noise_predictor(pipe)
        pipe.unet.requires_grad_(True)
        for step in range(self.settings.batches):
            rows = integers(len(pictures), count, 0, step, "saliency rows", pipe.device)
            noisy, noise, timesteps = noised(scheduler, latents[rows], 0, step, "saliency")
            functional.mse_loss(predict(noisy, timesteps, text[rows]), noise).backward()
            work.progress(step + 1, self.settings.batches, {})

    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Parameter name in the UNet -> packed mask; `unpack` gives its bools."""
        return tensors
