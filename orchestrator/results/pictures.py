"""The images of a sample stage, for looking at: grids and cells of a readable size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from orchestrator.core.artifacts import IMAGES, Role
from orchestrator.store.store import Record, Store

CELL_PX = 96
MAX_ROWS = 8
MAX_COLUMNS = 8
_GAP_PX = 4


@dataclass(frozen=True)
class Shown:
    """An image of a prompt."""

    prompt: str
    image: Image.Image


def read_images(store: Store, record: Record, role: Role = "erased") -> list[list[Shown]]:
    """A sample record's images of one role: a row a prompt, in the order of the noise seeds."""
    with store.object(record, IMAGES.name) as path:
        found = [row for row in IMAGES.read(path) if row.role == role]
    rows: dict[int, list[Shown]] = {}
    for row in sorted(found, key=lambda row: (row.prompt_index, row.image_index)):
        image = Image.open(io.BytesIO(row.png)).convert("RGB")
        rows.setdefault(row.prompt_index, []).append(Shown(row.prompt, image))
    return list(rows.values())


def cell(image: Image.Image, size_px: int = CELL_PX) -> Image.Image:
    """The image at about `size_px`: small ones by whole factors, their pixels kept sharp."""
    longest = max(image.size)
    if longest * 2 <= size_px:
        factor = size_px // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest > size_px:
        copy = image.copy()
        copy.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
        return copy
    return image


def grid(rows: Sequence[Sequence[Shown]]) -> Image.Image:
    """Prompts as rows × images as columns, at most 8 × 8, on white."""
    cells = [[cell(shown.image) for shown in row[:MAX_COLUMNS]] for row in rows[:MAX_ROWS]]
    wide = max(image.width for row in cells for image in row) + _GAP_PX
    high = max(image.height for row in cells for image in row) + _GAP_PX
    columns = max(len(row) for row in cells)
    sheet = Image.new("RGB", (columns * wide + _GAP_PX, len(cells) * high + _GAP_PX), "white")
    for y, row in enumerate(cells):
        for x, image in enumerate(row):
            sheet.paste(image, (_GAP_PX + x * wide, _GAP_PX + y * high))
    return sheet
