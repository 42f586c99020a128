"""What a picture is to a distance: features of the bundled judge, or embeddings of CLIP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from orchestrator.core.artifacts import KEPT, Role
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from workers.data.files import PlaceText
from workers.data.pinned import Source
from workers.interfaces.metric import Picture, Score
from workers.judging.model_metric import REVISION, SourceMetric, SourceSettings
from workers.judging.shapes_judge import JUDGE, judge_inputs

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LEAST = 2
"""Fewer pictures have no covariance and no pairs."""


class SetSettings(SourceSettings):
    """What the pictures' features are, and which pictures are compared."""

    MODELS: ClassVar[Mapping[str, str]] = {"features": "revision"}
    WORDS: ClassVar[frozenset[str]] = frozenset({JUDGE})

    features: PlaceText = Field(
        JUDGE,
        description="judge: the bundled world's; or a CLIP model: a folder or a repository id",
    )
    revision: str | None = Field(None, description=REVISION)
    roles: tuple[Role, ...] = Field(
        KEPT, description="the pictures that are compared; by default all that should survive"
    )

    @field_validator("roles")
    @classmethod
    def _are_a_choice(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        if not roles or len(set(roles)) < len(roles):
            raise ValueError(f"roles must be one or more, each once, but got {list(roles)}")
        return roles


class SetDistance(SourceMetric):
    """A distance between a model's pictures and the base's of the same prompts, as two sets.

    `distance`, with `n` pictures on either side and features of `dimensions`; and of each role
    alone that has enough of them, as "distance.other", "n.other".
    """

    reference = True
    per_picture = False
    values: ClassVar[tuple[float | None, float | None]] = (0.0, None)
    higher = "farther from the base's pictures"
    INSTEAD = "set features to a CLIP model"
    Settings = SetSettings
    settings: SetSettings

    @abstractmethod
    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """Between features (n, d) of the model's pictures and the base's."""

    def problems_with(self, asked: Asked) -> list[str]:
        """Its roles must have enough pictures."""
        there = sum(asked.pictures.get(role, 0) for role in self.settings.roles)
        return [] if there >= LEAST else [self._too_few(there)]

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """The distances and what they rest on."""
        s, sets = self.settings, []
        compared = [[p for p in some if p.probe.role in s.roles] for some in (pictures, reference)]
        for some in compared:
            if len(some) < LEAST:
                raise ResurgeError(self._too_few(len(some)))
            images = [picture.image for picture in some]
            sets.append(embedded(s.source_unless_word("features"), images))
        n, dimensions = map(float, sets[0].shape)
        found = {"distance": self.distance(*sets), "n": n, "dimensions": dimensions}
        # The base was asked the same in the same order, so that a row is of one role in both.
        roles = [picture.probe.role for picture in compared[0]]
        for role in dict.fromkeys(roles):
            rows = [row for row, other in enumerate(roles) if other == role]
            if len(rows) >= LEAST:
                found[f"distance.{role}"] = self.distance(*(features[rows] for features in sets))
                found[f"n.{role}"] = float(len(rows))
        return Score(found)

    def _too_few(self, there: int) -> str:
        return (
            f"metric {self.name!r} needs {LEAST} or more {', '.join(self.settings.roles)} pictures "
            f"but got {there}; retain concepts, raise evaluate.images_per_prompt or set roles"
        )


def embedded(source: Source | None, images: Sequence[np.ndarray]) -> Tensor:
    """Features (n, d): CLIP's image embeddings, of length 1.

    Without a source the judge's: the last layer's 64 channels, averaged over the picture.
    """
    if source is not None:
        from workers.judging.clip import load_clip

        return load_clip(source).images(images)
    import torch

    from workers.shapes.judge import Judge

    judge = Judge.load()
    with torch.inference_mode():
        bodies = (judge.body(unit * 2 - 1) for unit in judge_inputs(images))
        return torch.cat([body.mean(dim=(2, 3)) for body in bodies])
