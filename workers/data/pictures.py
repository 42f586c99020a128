"""Pictures and their scores as Parquet: what sample and score stages leave in the store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.core.artifacts import IMAGES, VALUES, ImageRow, Probe, Role, ValueRow
from workers.interfaces.metric import Picture


def write_pictures(path: Path, pictures: Sequence[Picture]) -> None:
    """One row a picture."""
    IMAGES.write(path, (ImageRow(*_asked(p), png_of(p.image)) for p in pictures))


def read_pictures(path: Path) -> list[Picture]:
    """The inverse of `write_pictures`."""
    return [
        Picture(
            Probe(row.role, row.concept, row.prompt),
            row.prompt_index,
            row.image_index,
            np.asarray(Image.open(io.BytesIO(row.png)).convert("RGB")),
        )
        for row in IMAGES.read(path)
    ]


def write_values(path: Path, pictures: Sequence[Picture], values: Sequence[float]) -> None:
    """One row a picture."""
    if len(values) != len(pictures):
        raise ValueError(f"a metric must give {len(pictures)} values but gave {len(values)}")
    pairs = zip(pictures, values, strict=True)
    VALUES.write(path, (ValueRow(*_asked(p), float(value)) for p, value in pairs))


def is_constant(image: np.ndarray) -> bool:
    """Whether uint8 (height, width, 3) is of one colour, up to a step of rounding either way."""
    return bool((np.ptp(image, axis=(0, 1)) <= 2).all())


def _asked(picture: Picture) -> tuple[Role, str, str, int, int]:
    probe = picture.probe
    return probe.role, probe.concept, probe.prompt, picture.prompt_index, picture.image_index


def png_of(image: np.ndarray) -> bytes:
    """uint8 (height, width, 3) as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
