"""Your own captioned pictures in one Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.files import PlaceText
from workers.data.parquet_file import ParquetRows
from workers.data.rows import Row, RowsDataset, RowsSettings


class ParquetSettings(RowsSettings):
    """Where the pictures are."""

    path: PlaceText = Field(description="a .parquet file")
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
    version = 2
    Settings = ParquetSettings
    settings: ParquetSettings

    def check(self) -> None:
        """The file must be there and have the two columns, of the right types."""
        if not self.path.is_file():
            there = "is a folder" if self.path.is_dir() else "does not exist"
            raise ResurgeError(
                f"dataset 'parquet' needs a .parquet file but got {self.path}, which {there}"
            )
        s, schema = self.settings, ParquetRows(self.path).schema
        wanted = {
            s.image_column: ("image_column", "pictures as bytes", _holds_bytes),
            s.caption_column: ("caption_column", "text", _holds_text),
        }
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        for column, (setting, what, is_right) in wanted.items():
            index = schema.get_field_index(column)  # -1 too where two columns have the name
            if index < 0 or not is_right(schema.field(index).type):
                raise ResurgeError(
                    f"{self.path} needs a column {column!r} with {what} but has {there}; "
                    f"set {setting}"
                )

    def rows(self) -> Iterator[Row]:
        """The rows, read a few at a time."""
        s = self.settings
        values = ParquetRows(self.path).values((s.image_column, s.caption_column))
        for number, row in enumerate(values, start=1):
            value = row[s.image_column]
            content = value.get("bytes") if isinstance(value, dict) else value
            yield Row(f"row {number}", content, row[s.caption_column])

    def there(self) -> int:
        """The file's own count."""
        return ParquetRows(self.path).count


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
