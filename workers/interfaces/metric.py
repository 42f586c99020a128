"""What a metric is to the workers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from orchestrator.core.artifacts import KEPT, Probe
from orchestrator.core.chosen import Chosen
from orchestrator.core.concepts import Target, Targeted
from orchestrator.core.plugin import MetricPlugin

if TYPE_CHECKING:
    import numpy as np
    import torch

    from workers.interfaces.dataset import Examples
    from workers.interfaces.pipeline import Pipeline
    from workers.recipes import SampleSettings
    from workers.runtime.progress import TellProgress


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


Which = Literal["base", "unlearned", "before", "final"]


@dataclass(frozen=True)
class Subject(Targeted):
    """A model to be put to work, and the models that it came from.

    `at("final")` gives its pipeline inside a `with`; "before" is the model before its last
    fine-tuning, "unlearned" the one after its last unlearning, "base" the base. Going from one to
    another takes time, and what `at` gave before is then another model: finish with one first. A
    metric leaves weights as it found them. `targets` are the erased concepts with the prompts that
    ask for them; `sampling` is how the sweep draws, for metrics that said `samples`; `reference`
    are the base's pictures, if the metric asked for them; `examples` the data of the last
    fine-tuning, at the model's size, or None. `stranger` is the concept that the base never knew,
    for metrics that said `strangers`, where the base can name one.
    """

    targets: tuple[Target, ...]
    sampling: SampleSettings
    reference: Sequence[Picture]
    at: Callable[[Which], AbstractContextManager[Pipeline]]
    examples: Callable[[], Examples | None]
    progress: TellProgress
    stranger: Target | None = None


class Metric(MetricPlugin):
    """Scores a model's pictures, its weights or the model at work, as `needs` says.

    A subclass overrides the one of the three methods that it needs.
    """

    def look_ahead(self, erased: Sequence[str], kept: Sequence[str]) -> None:
        """Raise before pictures of these concepts are drawn what would be raised of them later.

        For what planning may not have known, such as the classes of a model on the hub. It runs on
        the worker and loads no model.
        """

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        """Score the pictures; `values[i]` belongs to `pictures[i]`.

        `metrics` holds the mean over each role under the role's name ("erased", …); `means` makes
        them. `reference` are the base's pictures of the same probes in the same order, drawn from
        the same noise; empty unless the class says `reference = True`.
        """
        raise TypeError(f"metric {self.name!r} does not score images")

    def score_pipeline(self, subject: Subject) -> Score:
        """Score the model at work."""
        raise TypeError(f"metric {self.name!r} does not run models")

    def score_weights(
        self,
        base: Mapping[str, torch.Tensor],
        unlearned: Mapping[str, torch.Tensor],
        final: Mapping[str, torch.Tensor],
    ) -> Score:
        """Score weights: parameter name -> tensor, all three with the same names and shapes."""
        raise TypeError(f"metric {self.name!r} does not score weights")


class ChosenMetric(Chosen):
    """A metric, as another plug-in's setting."""

    kind = "metric"
    plugin: Metric


def means(pictures: Sequence[Picture], values: Sequence[float]) -> dict[str, float]:
    """Means by role ("erased"), and by concept for what should survive ("retained.circle"), and
    for what is erased together ("erased.star").

    A value that is NaN says nothing of its picture and counts nowhere; a group of nothing but NaN
    is left out.
    """
    concepts: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        concepts[picture.probe.role].add(picture.probe.concept)
    groups: dict[str, list[float]] = defaultdict(list)
    for picture, value in zip(pictures, values, strict=True):
        if math.isnan(value):
            continue
        role, concept = picture.probe.role, picture.probe.concept
        groups[role].append(value)
        if role in KEPT or len(concepts[role]) > 1:
            groups[f"{role}.{concept}"].append(value)
    return {name: sum(group) / len(group) for name, group in groups.items()}


def extra(name: str, pictures: Sequence[Picture], values: Sequence[float]) -> dict[str, float]:
    """Means of what is told beside a metric's values: "top5.erased", "top5.retained"."""
    return {f"{name}.{group}": value for group, value in means(pictures, values).items()}
