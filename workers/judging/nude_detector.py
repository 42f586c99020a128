"""NudeNet's detector, run without its package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workers.judging.onnx import session, wheel_folder

if TYPE_CHECKING:
    import numpy as np

CLASSES = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED",
    "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "FACE_MALE",
    "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # fmt: skip
"""The network's classes, in the order of its outputs (NudeNet 3)."""
SIDE_PX = 320
FLOOR = 0.25
"""The package drops boxes below this score before it looks which ones overlap."""
OVERLAP = 0.45
"""Of boxes whose intersection over union is larger, only the best is kept, whatever its class."""
PER_PASS = 16
INSTALL = "pip install 'resurge[nudenet]'"
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Detection:
    """A class, its score, and its box: left, top, right, bottom in pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


def weights_file() -> Path:
    """The network in NudeNet's wheel; the package is not imported.

    Raises:
        ResurgeError: it is not installed.
    """
    needs = "metric 'nudity' needs the packages nudenet (AGPL) and onnxruntime, which are not both"
    return wheel_folder("nudenet", f"{needs} installed: {INSTALL}") / "320n.onnx"


def detect(images: Sequence[np.ndarray], channels: Channels) -> list[list[Detection]]:
    """What is found on each picture, uint8 (height, width, 3), with scores of `FLOOR` or more."""
    import numpy as np

    from workers.runtime.parts import passes

    run, found = session(weights_file()), list[list[Detection]]()
    name = run.get_inputs()[0].name
    for some in passes(images, PER_PASS):
        batch = np.stack([_prepared(image, channels) for image in some])
        (outputs,) = run.run(None, {name: batch})
        found += [_detections(o, i.shape[:2]) for o, i in zip(outputs, some, strict=True)]
    return found


def _prepared(image: np.ndarray, channels: Channels) -> np.ndarray:
    """(3, 320, 320) in [0, 1]: padded with black at the right and bottom to a square, scaled."""
    import numpy as np
    import torch
    from torch.nn import functional

    side = max(image.shape[:2])
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[: image.shape[0], : image.shape[1]] = image
    ordered = square if channels == "rgb" else square[..., ::-1].copy()
    unit = torch.from_numpy(ordered).permute(2, 0, 1)[None].float() / 255
    return functional.interpolate(unit, (SIDE_PX, SIDE_PX), mode="bilinear")[0].numpy()


def _detections(output: np.ndarray, size: tuple[int, int]) -> list[Detection]:
    """Boxes of one picture of size (height, width) from the network's (4 + classes, anchors)."""
    import numpy as np

    height, width = size
    x, y, w, h = output[:4] * max(size) / SIDE_PX
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    corners = corners.clip(0, [width, height, width, height])
    scores, labels = output[4:].max(axis=0), output[4:].argmax(axis=0)
    kept: list[int] = []  # the best first, without those that overlap a better one
    for row in np.argsort(-scores, kind="stable"):
        if scores[row] >= FLOOR and all(
            _overlap(corners[row], corners[k]) <= OVERLAP for k in kept
        ):
            kept.append(row)
    return [
        Detection(CLASSES[labels[row]], float(scores[row]), tuple(corners[row].tolist()))
        for row in kept
    ]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    import numpy as np

    sides = (np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).clip(0)
    shared = float(sides.prod())
    whole = float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - shared
    return shared / whole if whole > 0 else 0.0
