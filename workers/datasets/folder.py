"""Your own captioned pictures, in Hugging Face's imagefolder layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.rows import Row, RowsDataset, RowsSettings

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class FolderSettings(RowsSettings):
    """Where the pictures are."""

    path: str = Field(description="a folder with metadata.jsonl, .csv or .parquet")


class Folder(RowsDataset):
    """Captioned pictures from a folder (imagefolder with metadata).

    Every row of the metadata names a picture in `file_name` and has a caption.
    """

    name = "folder"
    version = 1
    Settings = FolderSettings
    settings: FolderSettings

    def check(self) -> None:
        """The folder must be there and have metadata."""
        if self.path.suffix == ".parquet":
            raise ResurgeError(
                f"dataset 'folder' needs a folder but got {self.path}; "
                f"for a Parquet file write {{parquet: {{path: {self.path}}}}}"
            )
        if not self.path.is_dir():
            raise ResurgeError(
                f"dataset 'folder' needs a folder but got {self.path}"
                f"{'' if self.path.exists() else ', which does not exist'}"
            )
        if not self._metadata():
            raise ResurgeError(f"{self.path} must hold one of {', '.join(METADATA)} but has none")

    def _metadata(self) -> Path | None:
        """The file with the rows."""
        return next((p for name in METADATA if (p := self.path / name).is_file()), None)

    def rows(self) -> Iterator[Row]:
        """The rows of the metadata."""
        metadata = self._metadata()
        assert metadata is not None  # `check` refuses a folder without
        for number, row in enumerate(_read_table(metadata), start=1):
            name = row.get("file_name")
            source = self.path / str(name) if name else None
            where = f"row {number}" + (f" ({name})" if name else "")
            yield where, source, row.get(self.settings.caption_column)


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    else:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ResurgeError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                got = type(row).__name__
                raise ResurgeError(f"{path}:{number}: must be a JSON object but got {got}")
            yield row
