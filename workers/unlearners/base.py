"""What an unlearning method is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.plugin import UnlearnerPlugin
from workers.progress import Progress

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Erasure:
    """What to erase, and the means.

    `prompts` ask for the concept, `retained_prompts` for what should survive. All randomness is
    drawn from `workers.rng` with `seed` and the step.
    """

    pipe: StableDiffusionPipeline
    concept: str
    prompts: tuple[str, ...]
    retained_prompts: tuple[str, ...]
    seed: int
    progress: Progress


class Unlearner(UnlearnerPlugin):
    """A method that edits a pipeline's weights in place so that it no longer draws a concept.

    The instance is made for one erasure and is not shared between threads. It owns the pipeline
    while `unlearn` runs, and leaves it in evaluation mode with no hooks, adapters or gradients.
    """

    @abstractmethod
    def unlearn(self, erasure: Erasure) -> dict[str, float]:
        """Edit `erasure.pipe` and return numbers worth keeping (the last loss, a norm).

        Raises:
            ResurgeError: the settings do not fit this model.
            FloatingPointError: the loss is not finite.
        """
