"""How often CLIP finds the asked concept among a list of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import Asked, BasePlugin
from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, extra, means
from workers.judging.model_metric import CLIP_B32, REVISION, SourceMetric, SourceSettings


class ClipAccuracySettings(SourceSettings):
    """Which CLIP model, and the classes that it chooses among."""

    classes: tuple[str, ...] = Field(description="the classes; the asked concepts are among them")
    template: str = Field("a photo of a {}", description="a class's text, with {} where it stands")
    value: Literal["top1", "probability"] = Field(
        "top1", description="a picture's value; the other one is told beside it"
    )
    model: PlaceText = Field(CLIP_B32, description="a CLIP model: a folder or a repository id")
    revision: str | None = Field(None, description=REVISION)

    @field_validator("classes")
    @classmethod
    def _are_a_choice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError(f"classes must be two or more, each once, but got {list(classes)}")
        return classes

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"template must contain {{}} exactly once but got {template!r}")
        return template


class ClipAccuracy(SourceMetric):
    """Zero-shot: the class whose text is nearest to the picture, and the asked one's probability.

    `top1` is 1 where the asked concept is the most probable class (Radford et al., ICML 2021, sec.
    3.1). `probability` is the softmax over the classes at the model's own scale; its mean is the
    accuracy of MACE (Lu et al., CVPR 2024), over ten classes of objects and with ViT-B/32. A
    concept that the base never knew and that is no class has no value.
    """

    name = "clip_accuracy"
    version = 1
    Settings = ClipAccuracySettings
    settings: ClipAccuracySettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The erased concept must be a class."""
        return [] if concept in self.settings.classes else [self._no_class(concept)]

    def roles(self, asked: Asked) -> frozenset[str]:
        """A concept that nobody knows is no class."""
        return super().roles(asked) - {"never_known"}

    def judged_by(self) -> str:
        """The model, what of it is the value, and among how many classes."""
        s = self.settings
        return f"{super().judged_by()}, {s.value} among {len(s.classes)} classes"

    def problems_with(self, asked: Asked) -> list[str]:
        """So must the retained ones."""
        return [self._no_class(c) for c in asked.retained if c not in self.settings.classes]

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role of the value, and of the other one under its own name."""
        from workers.judging.clip import load_clip

        columns = [self._column(picture) for picture in pictures]
        s, clip = self.settings, load_clip(self.settings.source())
        texts = clip.texts([s.template.replace("{}", word) for word in s.classes])
        images = clip.images([picture.image for picture in pictures])
        rows = (clip.scale * images @ texts.T).softmax(dim=1).tolist()
        found = {"top1": list[float](), "probability": list[float]()}
        for row, column in zip(rows, columns, strict=True):
            top = row.index(max(row))
            found["top1"].append(math.nan if column is None else float(top == column))
            found["probability"].append(math.nan if column is None else row[column])
        values = found.pop(self.settings.value)
        ((other, beside),) = found.items()
        return Score(means(pictures, values) | extra(other, pictures, beside), values)

    def _column(self, picture: Picture) -> int | None:
        concept, classes = picture.probe.concept, self.settings.classes
        if concept in classes:
            return classes.index(concept)
        if picture.probe.role == "never_known":
            return None
        raise ResurgeError(self._no_class(concept))

    def _no_class(self, concept: str) -> str:
        allowed = suggest(concept, self.settings.classes)
        return f"metric {self.name!r} has no class {concept!r}; add it to classes{allowed}"
