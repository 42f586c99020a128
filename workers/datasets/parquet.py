"""Your own captioned pictures in one Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.rows import Row, RowsDataset, RowsSettings
from workers.interfaces.dataset import check_size

ROWS_AT_ONCE = 64


class ParquetSettings(RowsSettings):
    """Where the pictures are."""

    path: str = Field(description="a .parquet file")
    image_column: str = Field(
        "image", description="the column with the pictures: bytes, or a struct with `bytes`"
    )


class Parquet(RowsDataset):
    """Captioned pictures from a Parquet file (image bytes and captions).

    The pictures are encoded (PNG, JPEG, …) as bytes, or as Hugging Face's struct of `bytes` and
    `path`. A data set that was prepared for a sweep is such a file too, with its captions in
    `caption`.
    """

    name = "parquet"
    version = 1
    Settings = ParquetSettings
    settings: ParquetSettings

    def check(self) -> None:
        """The file must be there and have the two columns, of the right types."""
        import pyarrow
        import pyarrow.parquet

        if not self.path.is_file():
            there = "is a folder" if self.path.is_dir() else "does not exist"
            raise ResurgeError(
                f"dataset 'parquet' needs a .parquet file but got {self.path}, which {there}"
            )
        try:
            schema = pyarrow.parquet.read_schema(self.path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ResurgeError(f"{self.path} is no Parquet file: {error}") from error
        s = self.settings
        wanted = {
            s.image_column: ("image_column", "pictures as bytes", _holds_bytes),
            s.caption_column: ("caption_column", "text", _holds_text),
        }
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        for column, (setting, what, is_right) in wanted.items():
            if column not in schema.names or not is_right(schema.field(column).type):
                raise ResurgeError(
                    f"{self.path} needs a column {column!r} with {what} but has {there}; "
                    f"set {setting}"
                )

    def rows(self) -> Iterator[Row]:
        """The rows, read a few at a time."""
        import pyarrow.parquet

        s, number = self.settings, 0
        file = pyarrow.parquet.ParquetFile(self.path, memory_map=True)
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[s.image_column, s.caption_column]):
            for row in batch.to_pylist():
                number += 1
                value = row[s.image_column]
                content = value.get("bytes") if isinstance(value, dict) else value
                yield f"row {number}", content, row[s.caption_column]

    def count(self) -> int:
        """The rows that are taken, from the file's own count."""
        import pyarrow.parquet

        there = pyarrow.parquet.read_metadata(self.path).num_rows
        return check_size(there, self.settings.size, str(self.path))


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind))
