"""Whether fine-tuning taught the model anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.interfaces.metric import Metric, Score, Subject
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.dataset import Examples
    from workers.interfaces.pipeline import Pipeline


class FinetuneSuccessSettings(Settings):
    """How much is drawn to compare on."""

    ONLY_MEMORY = frozenset({"batch_size"})

    draws: int = Field(256, ge=1, description="(example, noise, time step) triples")
    batch_size: int = Field(32, ge=1, description="triples per forward pass")
    seed: int = Field(0, ge=0, description="seed of the triples; the same for every model")


class FinetuneSuccess(Metric):
    """How often the fine-tuned model predicts its data's noise better than before.

    `share`: over (example, noise, time step) triples of the fine-tuning data, the share on which
    the squared error of the predicted noise is smaller after the last fine-tuning than before it:
    0.5 where nothing was learned, 1 where everything is better. `loss_before` and `loss_final` are
    the mean errors, `improvement` = 1 - loss_final / loss_before. No pictures, no judge: the same
    measure for any data and any base.
    """

    name = "finetune_success"
    version = 1
    needs = "pipeline"
    joint = True
    of = frozenset({"finetune"})
    higher = "more was learned"
    Settings = FinetuneSuccessSettings
    settings: FinetuneSuccessSettings

    def score_pipeline(self, subject: Subject) -> Score:
        """Both models on the same triples."""
        examples = subject.examples()
        if examples is None:
            raise ResurgeError("finetune_success needs a model that was fine-tuned")
        losses = []
        for which in ("before", "final"):
            with subject.at(which) as pipe:
                losses.append(self._losses(pipe, examples))
        before, final = losses
        was, now = float(before.mean()), float(final.mean())
        share = float((final < before).double().mean())
        numbers = {"share": share, "loss_before": was, "loss_final": now}
        return Score(numbers | ({"improvement": 1 - now / was} if was > 0 else {}))

    def _losses(self, pipe: Pipeline, examples: Examples) -> Tensor:
        """Squared error of each triple's predicted noise: fp64 (draws,) on the CPU."""
        import torch

        from workers.diffusion.denoise import noise_predictor, noised, training_scheduler
        from workers.diffusion.latents import encode_images
        from workers.diffusion.rng import integers
        from workers.diffusion.text import embed

        s, found = self.settings, []
        scheduler, predict = training_scheduler(pipe), noise_predictor(pipe)
        latents, text = encode_images(pipe, examples), embed(pipe, examples.captions)
        with torch.no_grad():
            for step, begin in enumerate(range(0, s.draws, s.batch_size)):
                count = min(s.batch_size, s.draws - begin)
                rows = integers(len(latents), count, s.seed, step, "success rows", latents.device)
                noisy, noise, times = noised(scheduler, latents[rows], s.seed, step, "success")
                error = predict(noisy, times, text[rows]) - noise
                found.append(error.double().square().mean(dim=(1, 2, 3)))
                tell(begin + count, s.draws)
        return torch.cat(found).cpu()
