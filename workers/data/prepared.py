"""A prepared data set: one Parquet file with every picture that a fine-tune may see."""

from __future__ import annotations

import hashlib
from itertools import repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from orchestrator.core.artifacts import DATASET, EXAMPLES, ExampleRow
from workers.data.pictures import png_of
from workers.interfaces.dataset import Examples
from workers.runtime.progress import tell


def write_examples(path: Path, examples: Examples) -> None:
    """One row an example, in their order; pictures are not compressed twice."""
    images = []
    for image in examples.images:
        images.append(png_of(image))
        tell(len(images), len(examples))
    digests = (hashlib.sha256(content).hexdigest() for content in images)
    distances = examples.distances or repeat(None, len(images))
    columns = (images, examples.captions, examples.sources, digests, distances)
    DATASET.write(path, map(ExampleRow, *columns))


def read_examples(path: Path) -> Examples:
    """The inverse of `write_examples`; the file is mapped, so its bytes are not copied first."""
    table = DATASET.table(path, memory_map=True)
    encoded, captions, sources, _, distances = table.columns
    images = np.empty(0)
    for row, content in enumerate(encoded):
        with Image.open(pa.BufferReader(content.as_buffer())) as image:
            picture = np.asarray(image.convert("RGB"))
        if row == 0:
            images = np.empty((table.num_rows, *picture.shape), dtype=np.uint8)
        images[row] = picture
    return Examples(
        images,
        tuple(captions.to_pylist()),
        tuple(sources.to_pylist()),
        () if distances.null_count else tuple(distances.to_pylist()),
    )


def numbers_of(examples: Examples) -> dict[str, float]:
    """What a record says of a data set: its size, its pictures' side, its distances."""
    numbers = {EXAMPLES: float(len(examples)), "size_px": float(examples.images.shape[1])}
    if examples.distances:
        values = np.array(examples.distances)
        numbers |= {f"distance_{f.__name__}": float(f(values)) for f in (np.min, np.mean, np.max)}
    return numbers
