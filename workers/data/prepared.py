"""A prepared data set: one Parquet file with every picture that a fine-tune may see."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workers.interfaces.dataset import Examples
from workers.runtime.progress import tell

DATASET_FILE = "dataset.parquet"
ROWS_PER_GROUP = 256
ABOUT = {
    "image": (pa.binary(), "the picture as it is trained on, PNG"),
    "caption": (pa.string(), "its caption"),
    "source": (pa.string(), "where it is from: data set, then row, file or number"),
    "sha256": (pa.string(), "sha256 of the image column's bytes"),
    "distance": (pa.float64(), "distance from the erased concept; null if it was not measured"),
}


SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"description": about}) for name, (kind, about) in ABOUT.items()]
)


def write_examples(path: Path, examples: Examples) -> None:
    """One row an example, in their order; pictures are not compressed twice."""
    images = []
    for image in examples.images:
        images.append(_png(image))
        tell(len(images), len(examples))
    columns: dict[str, list[Any]] = {
        "image": images,
        "caption": list(examples.captions),
        "source": list(examples.sources),
        "sha256": [hashlib.sha256(content).hexdigest() for content in images],
        "distance": list(examples.distances) or [None] * len(images),
    }
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, path, compression="none", row_group_size=ROWS_PER_GROUP)


def read_examples(path: Path) -> Examples:
    """The inverse of `write_examples`; the file is mapped, so its bytes are not copied first."""
    table = pq.read_table(path, memory_map=True)
    pictures = (_pixels(value.as_buffer()) for value in table["image"])
    first = next(pictures)
    images = np.empty((table.num_rows, *first.shape), dtype=np.uint8)
    images[0] = first
    for row, picture in enumerate(pictures, start=1):
        images[row] = picture
    distances = table["distance"].to_pylist()
    return Examples(
        images,
        tuple(table["caption"].to_pylist()),
        tuple(table["source"].to_pylist()),
        () if None in distances else tuple(distances),
    )


def numbers_of(examples: Examples) -> dict[str, float]:
    """What a record says of a data set: its size, its pictures' side, its distances."""
    numbers = {"examples": float(len(examples)), "size_px": float(examples.images.shape[1])}
    if examples.distances:
        values = np.array(examples.distances)
        numbers |= {f"distance_{f.__name__}": float(f(values)) for f in (np.min, np.mean, np.max)}
    return numbers


def _pixels(content: pa.Buffer) -> np.ndarray:
    """uint8 (height, width, 3)."""
    with Image.open(pa.BufferReader(content)) as image:
        return np.asarray(image.convert("RGB"))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
