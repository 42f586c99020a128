"""What a metric is to the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from orchestrator.plugin import MetricPlugin

if TYPE_CHECKING:
    import numpy as np
    import torch

Role = Literal["erased", "retained", "never_known"]


@dataclass(frozen=True)
class Probe:
    """A prompt that a model is asked, and why: `concept` is what the picture should show."""

    role: Role
    concept: str
    prompt: str


@dataclass(frozen=True)
class Picture:
    """One generated image: uint8 of shape (height, width, 3), with the probe that asked for it.

    `prompt_index` counts the prompts of a sample stage, `image_index` the images of one prompt.
    """

    probe: Probe
    prompt_index: int
    image_index: int
    image: np.ndarray


@dataclass(frozen=True)
class Score:
    """A metric's result: numbers, and for image metrics one value a picture in their order."""

    metrics: Mapping[str, float]
    values: Sequence[float] = field(default=())


class Metric(MetricPlugin):
    """Scores images of a model (`needs = "images"`) or its weights (`needs = "model"`).

    A subclass overrides the one of the two methods that it needs.
    """

    def score_images(self, pictures: Sequence[Picture]) -> Score:
        """Score the pictures; `values[i]` belongs to `pictures[i]`, higher is more of the concept.

        `metrics` holds the mean over each role under the role's name ("erased", …).
        """
        raise TypeError(f"metric {self.name!r} does not score images")

    def score_model(
        self,
        base: Mapping[str, torch.Tensor],
        unlearned: Mapping[str, torch.Tensor],
        final: Mapping[str, torch.Tensor],
    ) -> Score:
        """Score weights: parameter name -> tensor, all three with the same names and shapes."""
        raise TypeError(f"metric {self.name!r} does not score models")
