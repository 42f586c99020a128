"""Which weights matter for drawing a concept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.erasure.materials import pack
from workers.interfaces.material import Made, Material, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from workers.erasure.relabel import NoisyPictures, PictureSet


class SaliencySettings(Settings):
    """How weights are scored, and how many are chosen."""

    score: Literal["gradient", "snip", "snip_by_batch"] = Field(
        "gradient",
        description="gradient: |Σ g| over batches (SalUn); snip: |Σ g| · |w| (Scissorhands' "
        "paper); snip_by_batch: (Σ |g|) · |w| (its released code)",
    )
    share: float = Field(0.5, gt=0, le=1, description="share of all weights that is chosen")
    batches: int | None = Field(
        10, ge=1, description="batches whose gradients are summed; null: every picture once"
    )
    batch_size: int = Field(16, ge=1, description="pictures per batch")
    guidance: float = Field(
        0.0, ge=0, description="g: the loss is of (1 + g) ε(c) - g ε(∅); 0: the plain prediction"
    )


class Saliency(Material):
    """The weights of the UNet with the largest scores under the concept's denoising loss.

    SalUn (Fan et al., ICLR 2024, eq. 3) and SNIP (Lee et al., ICLR 2019). SalUn's released code
    takes the gradient of the *guided* prediction, both of whose passes have gradients. The
    threshold is one for the whole UNet: the k-th value, not a sort. The loss is in the model's own
    output.
    """

    name = "saliency"
    version = 2
    Settings = SaliencySettings
    settings: SaliencySettings

    def make(self, work: Work) -> Made:
        """Sum gradients, score, choose; no weight moves."""
        import torch

        s, scores = self.settings, self.summed_gradients(work)
        weights = {n: w.detach() for n, w in work.pipe.unet.named_parameters() if n in scores}
        for name, total in scores.items():
            total.abs_()
            if s.score != "gradient":
                total.mul_(weights[name].abs())
        flat = torch.cat([score.flatten() for score in scores.values()])
        if s.score == "gradient":
            chosen, threshold = largest(flat, max(1, math.floor(s.share * len(flat))))
        else:
            chosen, threshold = above(flat, math.floor((1 - s.share) * len(flat)))
        sizes = [score.numel() for score in scores.values()]
        parts = chosen.split(sizes)
        masks = {name: pack(part) for name, part in zip(scores, parts, strict=True)}
        return Made(masks, {"threshold": threshold, "weights": float(chosen.sum())})

    def summed_gradients(self, work: Work) -> dict[str, Tensor]:
        """Σ over batches of g, or of |g|, by the parameter's name in the UNet."""
        parameters = dict(work.pipe.unet.named_parameters())
        work.pipe.unet.requires_grad_(True)
        by_batch = self.settings.score == "snip_by_batch"
        total: dict[str, Tensor] = {}
        try:
            for loss in self._losses(work):
                loss.backward()
                if by_batch:
                    _add_absolute(total, parameters)
            if not by_batch:
                total = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        finally:
            work.pipe.unet.requires_grad_(False)
            work.pipe.unet.zero_grad(set_to_none=True)
        return total

    def _losses(self, work: Work) -> Iterator[Tensor]:
        from torch.nn import functional

        from workers.diffusion.denoise import guide, noise_pair, predictor
        from workers.diffusion.text import embed
        from workers.erasure.relabel import PictureSet

        pipe, g = work.pipe, self.settings.guidance
        pictures, predict = PictureSet.of(pipe, work.source), predictor(pipe, "output")
        empty = embed(pipe, [""])
        count = self.settings.batches or -(-len(work.source) // self.settings.batch_size)
        for done, batch in enumerate(self._batches(pictures), start=1):
            x, t, text = batch.noisy, batch.timesteps, pictures.text[batch.rows]
            if g:
                found = guide(*noise_pair(predict, x, t, text, empty.expand_as(text)), 1 + g)
            else:
                found = predict(x, t, text)
            yield functional.mse_loss(found, pictures.target(batch, "output"))
            work.progress(done, count, {})

    def _batches(self, pictures: PictureSet) -> Iterator[NoisyPictures]:
        s = self.settings
        if s.batches is None:
            yield from pictures.once(s.batch_size, 0, "saliency")
        else:
            for step in range(s.batches):
                yield pictures.batch(s.batch_size, 0, step, "saliency")

    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Parameter name in the UNet -> packed mask; `unpack` gives its bools."""
        return tensors


def _add_absolute(total: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Add each gradient's absolute values to the total, and forget the gradient."""
    for name, value in parameters.items():
        if value.grad is not None:
            gradient, value.grad = value.grad.abs_(), None
            total[name] = total[name].add_(gradient) if name in total else gradient


def largest(scores: Tensor, count: int) -> tuple[Tensor, float]:
    """Exactly `count` of the scores (n,), ties in order: bool (n,), and the smallest chosen."""
    threshold = scores.kthvalue(len(scores) - count + 1).values
    chosen = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen, float(threshold)


def above(scores: Tensor, rank: int) -> tuple[Tensor, float]:
    """The scores (n,) greater than the `rank`-th smallest: bool (n,), and that; all for rank 0."""
    if rank == 0:
        return scores >= 0, 0.0
    threshold = scores.kthvalue(rank).values
    return scores > threshold, float(threshold)
