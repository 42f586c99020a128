"""Pictures and their scores as Parquet: what sample and score stages leave in the store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workers.interfaces.metric import Picture, Probe


def write_pictures(path: Path, pictures: Sequence[Picture]) -> None:
    """One row a picture: role, concept, prompt, prompt_index, image_index, png."""
    columns = {**_probe_columns(pictures), "png": [_png(p.image) for p in pictures]}
    pq.write_table(pa.table(columns), path, compression="none")


def read_pictures(path: Path) -> list[Picture]:
    """The inverse of `write_pictures`."""
    return [
        Picture(
            Probe(row["role"], row["concept"], row["prompt"]),
            row["prompt_index"],
            row["image_index"],
            np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB")),
        )
        for row in pq.read_table(path).to_pylist()
    ]


def write_values(path: Path, pictures: Sequence[Picture], values: Sequence[float]) -> None:
    """One row a picture: role, concept, prompt, prompt_index, image_index, value."""
    if len(values) != len(pictures):
        raise ValueError(f"a metric must give {len(pictures)} values but gave {len(values)}")
    columns = {**_probe_columns(pictures), "value": [float(value) for value in values]}
    pq.write_table(pa.table(columns), path)


def write_losses(path: Path, losses: Sequence[tuple[int, float]]) -> None:
    """One row an optimiser step: step, loss."""
    steps, values = ([pair[i] for pair in losses] for i in (0, 1))
    table = pa.table({"step": pa.array(steps, pa.int64()), "loss": pa.array(values, pa.float64())})
    pq.write_table(table, path)


def _probe_columns(pictures: Sequence[Picture]) -> dict[str, list[Any]]:
    return {
        "role": [p.probe.role for p in pictures],
        "concept": [p.probe.concept for p in pictures],
        "prompt": [p.probe.prompt for p in pictures],
        "prompt_index": [p.prompt_index for p in pictures],
        "image_index": [p.image_index for p in pictures],
    }


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
