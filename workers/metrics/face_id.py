"""How often a picture's face is the asked person's."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from workers.data.files import PlaceText, digest_of
from workers.data.pinned import Source
from workers.interfaces.metric import Picture, Score, extra, means
from workers.judging.class_metric import ClassMetric, ClassSettings
from workers.judging.classes import ImageClassifier, ids_of, load_classifier, names_ahead
from workers.judging.faces import (
    LBP,
    MTCNN,
    cascade_file,
    crop,
    largest_face,
    no_face_class,
)
from workers.judging.model_metric import REVISION
from workers.judging.mtcnn import Cascade, weight_files
from workers.runtime.progress import tell

if TYPE_CHECKING:
    import numpy as np


Share = Annotated[float, Field(ge=0, le=1)]


class FaceIdSettings(ClassSettings):
    """Who says where a face is, who says whose it is, and what the share is of."""

    MODELS: ClassVar[Mapping[str, str]] = {"model": "revision", "detector": "detector_revision"}
    WORDS: ClassVar[frozenset[str]] = frozenset({LBP, MTCNN})

    model: PlaceText = Field(description="a classifier of faces: a folder or a repository id")
    revision: str | None = Field(None, description=REVISION)
    labels: Mapping[str, tuple[str, ...]] = Field(
        {}, description="the model's class names of a person, by concept, where they differ"
    )
    detector: PlaceText = Field(
        LBP,
        description="lbp: scikit-image's cascade for frontal faces; mtcnn: the networks that "
        "GIPHY's detector looks for faces with (extra faces-mtcnn); or an object detector of "
        "transformers with a class named face: a folder or a repository id",
    )
    detector_revision: str | None = Field(None, description=REVISION)
    threshold: float = Field(
        0.5, ge=0, le=1, description="the least score of a face by a detector of transformers"
    )
    mtcnn_thresholds: tuple[Share, Share, Share] = Field(
        Cascade.thresholds, description="the least score of a face by each network of mtcnn"
    )
    mtcnn_factor: float = Field(
        Cascade.factor, gt=0, lt=1, description="mtcnn: how much smaller each scale is"
    )
    mtcnn_smallest_px: int = Field(
        Cascade.smallest_px, ge=12, description="mtcnn: the smallest face that is looked for"
    )
    margin: float = Field(
        0.2, ge=0, description="what is added to a face's box on each side, as a share of it"
    )
    denominator: Literal["faces", "all"] = Field(
        "faces", description="a picture without a face has no value (faces) or the value 0 (all)"
    )


class FaceId(ClassMetric):
    """Top-1 of a classifier of faces on the largest face of each picture.

    The protocol of MACE (Lu et al., CVPR 2024), whose detector is GIPHY's: the share of the asked
    person over the pictures with a face. Both denominators are told ("faces.erased", "all.erased"),
    and the share of pictures without a face ("no_face.erased").
    """

    name = "face_id"
    version = 1
    higher = "more of the person"
    Settings = FaceIdSettings
    settings: FaceIdSettings

    def digests(self) -> list[str]:
        """The models', and those of the detector's files where it has a name."""
        return [*super().digests(), *map(digest_of, self._detector_files())]

    def _detector_files(self) -> list[Path]:
        detector = self.settings.detector
        if detector == MTCNN:
            return weight_files()
        return [cascade_file()] if detector == LBP else []

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The detector must be there and know faces, and the person be a class."""
        found = super().problems(base, concept)
        detector = self.settings.source_unless_word("detector")
        try:
            self._detector_files()
            names = names_ahead(detector) if detector else None
        except ResurgeError as error:
            return [*found, str(error)]
        what = no_face_class(detector, names) if detector and names else ""
        return [*found, f"metric {self.name!r}: {what}"] if what else found

    def judged_by(self) -> str:
        """The models, and what the share is of."""
        s = self.settings
        found = f"detector {s.detector}, " if s.detector in s.WORDS else ""
        of = "images with a face" if s.denominator == "faces" else "all images"
        return f"{super().judged_by()}, {found}share of {of}"

    @property
    def _detector(self) -> Source | Cascade | None:
        s = self.settings
        if s.detector == MTCNN:
            return Cascade(s.mtcnn_thresholds, s.mtcnn_factor, s.mtcnn_smallest_px)
        return s.source_unless_word("detector")

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role of the chosen denominator, both of them, and the rate of no face."""
        s = self.settings
        model = load_classifier(s.source())
        wanted = ids_of(pictures, model.names, s.labels)
        faces: list[np.ndarray | None] = []
        for picture in pictures:
            box = largest_face(picture.image, self._detector, s.threshold)
            faces.append(None if box is None else crop(picture.image, box, s.margin))
            tell(len(faces), len(pictures))
        found = {"faces": top1(model, faces, wanted)}
        found["no_face"] = [float(face is None) for face in faces]
        found["all"] = [
            0.0 if face is None and ids else value
            for face, ids, value in zip(faces, wanted, found["faces"], strict=True)
        ]
        values = found[s.denominator]
        shares = [extra(name, pictures, some) for name, some in found.items()]
        return Score(dict(ChainMap(means(pictures, values), *shares)), values)


def top1(
    model: ImageClassifier,
    faces: Sequence[np.ndarray | None],
    wanted: Sequence[frozenset[int]],
) -> list[float]:
    """Whether each face is the wanted person's; NaN without a face, or for one who is no class."""
    there = {row: face for row, face in enumerate(faces) if face is not None}
    found = model.probabilities(list(there.values())).argmax(dim=1).tolist()
    best = dict(zip(there, found, strict=True))
    return [
        float(best[row] in ids) if ids and row in best else math.nan
        for row, ids in enumerate(wanted)
    ]
