"""The largest face of a picture: by scikit-image's cascade, MTCNN, or transformers' detectors."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import some
from workers.data.loading import load_model
from workers.data.pinned import Source
from workers.judging.mtcnn import Cascade, find_faces
from workers.runtime.kept import kept

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
LBP, MTCNN = "lbp", "mtcnn"
CASCADE = "lbpcascade_frontalface_opencv.xml"
INSTALL = "pip install 'resurge[faces]'"
MOST_TOLD = 10
SMALLEST = 1 / 8
"""A face that the cascade finds is at least this share of the picture's shorter side."""


@dataclass(frozen=True)
class Detector:
    """A detector of transformers with what prepares its inputs."""

    model: Any
    processor: Any
    faces: frozenset[int]


def cascade_file() -> Path:
    """scikit-image's cascade of local binary patterns; the package is not imported.

    Raises:
        ResurgeError: it is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ResurgeError(
            "metric 'face_id' with detector 'lbp' needs scikit-image, which is not installed: "
            f"{INSTALL}; or set `detector` to mtcnn or to a face detector of transformers"
        )
    return Path(spec.origin).parent / "data" / CASCADE


def largest_face(image: np.ndarray, by: Source | Cascade | None, threshold: float) -> Box | None:
    """The largest face that scikit-image's cascade (None), MTCNN or a detector of transformers
    finds, the last one with the given least score; None without one.
    """
    if by is None:
        found = _cascade_boxes(image)
    elif isinstance(by, Cascade):
        found = [tuple(box) for box in find_faces(image, by)[0].tolist()]
    else:
        found = _detector_boxes(image, by, threshold)
    return max(found, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)


def crop(image: np.ndarray, box: Box, margin: float) -> np.ndarray:
    """The box with `margin` times its sides added on each side, as far as the picture goes."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    wide, high = margin * (right - left), margin * (bottom - top)
    columns = slice(max(0, round(left - wide)), min(width, round(right + wide)))
    rows = slice(max(0, round(top - high)), min(height, round(bottom + high)))
    return image[rows, columns]


def _cascade_boxes(image: np.ndarray) -> Sequence[Box]:
    side = min(image.shape[:2])
    smallest = max(24, round(side * SMALLEST))  # 24: the window that the cascade was trained on
    found = _cascade().detect_multi_scale(
        img=image,
        scale_factor=1.2,
        step_ratio=1,
        min_size=(smallest, smallest),
        max_size=(side, side),
    )
    return [(f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in found]


@lru_cache(maxsize=1)
def _cascade() -> Any:
    path = cascade_file()
    from skimage.feature import Cascade

    return Cascade(str(path))


def _detector_boxes(image: np.ndarray, source: Source, threshold: float) -> Sequence[Box]:
    import torch

    from workers.judging.clip import prepare

    detector = _load_detector(source)
    with torch.inference_mode():
        found = detector.model(prepare(detector.processor, [image]).to(detector.model.device))
    (result,) = detector.processor.post_process_object_detection(
        found, threshold=threshold, target_sizes=[image.shape[:2]]
    )
    labelled = zip(result["labels"].tolist(), result["boxes"].tolist(), strict=True)
    return [tuple(box) for label, box in labelled if label in detector.faces]


@kept(1)
def _load_detector(source: Source) -> Detector:
    from transformers import AutoModelForObjectDetection

    from workers.judging.clip import load_processor

    model = load_model(AutoModelForObjectDetection, source)
    names = model.config.id2label
    if what := no_face_class(source, list(names.values())):
        raise ResurgeError(what)
    faces = frozenset(index for index, name in names.items() if _is_face(name))
    return Detector(model, load_processor(source), faces)


def no_face_class(source: Source, names: Sequence[str]) -> str:
    """What to say of a detector without a class of faces; '' if it has one."""
    if any(map(_is_face, names)):
        return ""
    has = some(list(map(str, names)), MOST_TOLD)
    return f"detector {source.name!r} must have a class with 'face' in its name but has {has}"


def _is_face(name: str) -> bool:
    return "face" in name.lower()
