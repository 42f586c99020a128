"""How often an image classifier sees the asked concept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, extra, means
from workers.judging.class_metric import ClassMetric, ClassSettings
from workers.judging.classes import ids_of, load_classifier
from workers.judging.model_metric import RESNET_50, REVISION

TOP = 5


class ClassifierSettings(ClassSettings):
    """Which model, and which of its classes the concepts are."""

    model: PlaceText = Field(
        RESNET_50, description="an image classifier of transformers: a folder or a repository id"
    )
    revision: str | None = Field(None, description=REVISION)
    labels: Mapping[str, tuple[str, ...]] = Field(
        {},
        description="the model's class names that show a concept, by concept; a concept that is "
        "not here is looked for among the names, which are split at commas",
    )


class Classifier(ClassMetric):
    """Top-1 of an image classifier (ResNet-50 on ImageNet by default), and top-5 beside it.

    1 where the most probable class is one of the concept's, the object accuracy of ESD (Gandikota
    et al., ICCV 2023). `top5` is 1 where one of the five most probable is. A concept that
    the base never knew and that is no class has no value.
    """

    name = "classifier"
    version = 1
    Settings = ClassifierSettings
    settings: ClassifierSettings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means of top-1 by role, and of top-5 as "top5.erased"."""
        model = load_classifier(self.settings.source())
        wanted = ids_of(pictures, model.names, self.settings.labels)
        ranks = model.probabilities([p.image for p in pictures]).argsort(dim=1, descending=True)
        top1 = [_hit(row[:1], ids) for row, ids in zip(ranks.tolist(), wanted, strict=True)]
        top5 = [_hit(row[:TOP], ids) for row, ids in zip(ranks.tolist(), wanted, strict=True)]
        return Score(means(pictures, top1) | extra("top5", pictures, top5), top1)


def _hit(ranked: Sequence[int], wanted: frozenset[int]) -> float:
    return float(not wanted.isdisjoint(ranked)) if wanted else math.nan
