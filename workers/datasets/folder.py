"""Your own captioned pictures, in Hugging Face's imagefolder layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.files import PlaceText
from workers.data.metadata import METADATA, SAVED, Entry, read_entries
from workers.data.rows import Row, RowsDataset, RowsSettings


class FolderSettings(RowsSettings):
    """Where the pictures are."""

    path: PlaceText = Field(description="a folder with metadata.jsonl, .csv or .parquet")


class Folder(RowsDataset):
    """Captioned pictures from a folder (imagefolder with metadata).

    Every row of the metadata names a picture in `file_name` and has a caption.
    """

    name = "folder"
    version = 2
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
            if any((self.path / name).is_file() for name in SAVED):
                raise ResurgeError(
                    f"{self.path} was saved by the package datasets; "
                    f"write {{hub: {{repository: {self.path}}}}}"
                )
            raise ResurgeError(f"{self.path} must hold one of {', '.join(METADATA)} but has none")

    def _metadata(self) -> Path | None:
        """The file with the rows."""
        return next((p for name in METADATA if (p := self.path / name).is_file()), None)

    def rows(self) -> Iterator[Row]:
        """The rows of the metadata."""
        return map(self._row, self._entries())

    def others(self) -> Iterable[str]:
        """The pictures that the metadata name."""
        names = (entry.values.get("file_name") for entry in self._entries())
        return {name for name in names if isinstance(name, str)}

    def _entries(self) -> Iterator[Entry]:
        metadata = self._metadata()
        assert metadata is not None  # `check` refuses a folder without
        return read_entries(metadata, ("file_name", self.settings.caption_column))

    def _row(self, entry: Entry) -> Row:
        name, fault = entry.values.get("file_name"), entry.fault
        if name and not isinstance(name, str):
            fault = fault or f"file_name must be text but is {type(name).__name__}"
        source = self.path / name if isinstance(name, str) and name else None
        where = f"{entry.name} ({name})" if source else entry.name
        return Row(where, source, entry.values.get(self.settings.caption_column), fault)
