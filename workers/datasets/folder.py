"""Your own captioned pictures, in Hugging Face's imagefolder layout or in a Parquet file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from orchestrator.errors import ResurgeError
from orchestrator.plugin import BasePlugin, Settings
from workers.datasets.base import Dataset, Examples

if TYPE_CHECKING:
    import numpy as np

Row = tuple[str, bytes | Path | None, Any]
"""(what to call the row in an error, the picture, the caption)."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
HASH_CHUNK_BYTES = 1 << 20


class FolderSettings(Settings):
    """Where the pictures are."""

    path: str = Field(description="a folder with metadata.jsonl, .csv or .parquet; or a .parquet")
    caption_column: str = Field("text", description="the column with the captions")
    image_column: str = Field("image", description="a Parquet file's column with the image bytes")


class Folder(Dataset):
    """Captioned pictures from a folder (imagefolder with metadata) or a Parquet file.

    In a folder every row of the metadata names a picture in `file_name`. A Parquet file holds the
    pictures as bytes, or as Hugging Face's struct of `bytes` and `path`. Pictures are turned
    upright, scaled to cover a square and cropped in the middle. Whether they show the erased
    concept is for you to know.
    """

    name = "folder"
    version = 1
    uses_concept = False
    Settings = FolderSettings

    @property
    def _path(self) -> Path:
        return Path(self.settings.path).expanduser()

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The path must exist and have metadata."""
        try:
            self._metadata()
        except ResurgeError as error:
            return [str(error)]
        return []

    def fingerprint(self) -> str:
        """sha256 of names and contents: all of a folder's files, or the Parquet file."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        self._metadata()
        return digest_of(self._path)

    def examples(self, concept: str, size_px: int) -> Examples:
        """Read every row; all bad rows are named at once."""
        return collect(self._rows(), self._path, self.settings.caption_column, size_px)

    def _metadata(self) -> Path:
        """The file with the rows."""
        if self._path.is_file() and self._path.suffix == ".parquet":
            return self._path
        if not self._path.is_dir():
            raise ResurgeError(
                f"dataset 'folder' needs a folder or a .parquet file but got {self._path}"
                f"{'' if self._path.exists() else ', which does not exist'}"
            )
        for name in METADATA:
            if (self._path / name).is_file():
                return self._path / name
        raise ResurgeError(f"{self._path} must hold one of {', '.join(METADATA)} but has none")

    def _rows(self) -> Iterator[Row]:
        metadata, caption = self._metadata(), self.settings.caption_column
        for number, row in enumerate(_read_table(metadata), start=1):
            where = f"row {number}"
            if metadata == self._path:
                value = row.get(self.settings.image_column)
                content = value.get("bytes") if isinstance(value, dict) else value
                yield where, content, row.get(caption)
            else:
                name = row.get("file_name")
                source = self._path / str(name) if name else None
                yield f"{where} ({name})" if name else where, source, row.get(caption)


def collect(rows: Iterable[Row], where: object, column: str, size_px: int) -> Examples:
    """Pictures and captions of rows; `column` is where errors say that the caption is missing.

    Raises:
        ResurgeError: with every bad row; or there are no rows.
    """
    import numpy as np

    images, captions, bad = [], [], []
    for name, source, text in rows:
        try:
            images.append(_read_image(source, size_px))
            captions.append(_read_caption(text, column))
        except (OSError, ValueError) as error:
            bad.append(f"{name}: {error}")
    if bad:
        raise ResurgeError(f"{where}: {len(bad)} bad rows\n  " + "\n  ".join(bad))
    if not images:
        raise ResurgeError(f"{where} has no rows; at least one picture is needed")
    return Examples(np.stack(images), tuple(captions))


def digest_of(root: Path) -> str:
    """sha256 of names and contents: all of a folder's files, or one file."""
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else ""
        total.update(f"{name}\0{_sha256(file)}\n".encode())
    return total.hexdigest()


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    else:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                yield _read_json(line, f"{path}:{number}")


def _read_json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ResurgeError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ResurgeError(f"{where}: must be a JSON object but got {type(row).__name__}")
    return row


def _read_caption(text: Any, column: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"no caption in column {column!r}")
    return text


def _read_image(source: bytes | Path | None, size_px: int) -> np.ndarray:
    """uint8 (size_px, size_px, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    if source is None:
        raise ValueError("no picture")
    if isinstance(source, Path) and not source.is_file():
        raise ValueError("the file is missing")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    square = ImageOps.fit(upright, (size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(square)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
