"""A Parquet file read a few rows at a time, however far it unfolds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.core.errors import DataError
from orchestrator.core.text import size_text

ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 2**28
"""What is unfolded at once is less than this, or one row."""
MOST_UNFOLDED = 1000
"""Pictures shrink by little, and captions by less than this, when they are compressed."""
SMALLEST_BOMB_BYTES = 2**30


class ParquetRows:
    """The rows of a file; its footer is read when it is made.

    Raises:
        DataError: it is no Parquet file, is damaged, or would unfold to something enormous.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self.path = path
        with self._reading("is no Parquet file"):
            self.file = pyarrow.parquet.ParquetFile(path, memory_map=True)
            self.schema = self.file.schema_arrow
            self.count: int = self.file.metadata.num_rows
        self.columns: tuple[str, ...] = tuple(self.schema.names)

    def values(self, columns: Collection[str]) -> Iterator[dict[str, Any]]:
        """Each row's values of these columns, in the file's order."""
        batches = self.file.iter_batches(self._rows_at_once(), columns=list(columns))
        while True:
            with self._reading("cannot be read"):
                batch = next(batches, None)
                if batch is None:
                    return
                # Not checked, a damaged place in a dictionary leads to any place of the memory.
                batch.validate(full=True)
                rows = batch.to_pylist()
            yield from rows

    def _rows_at_once(self) -> int:
        """No value is larger than the group of rows that it is in, though it may be in every row.

        Of single columns Arrow is not asked: where the footer is damaged, it ends the process.
        """
        largest, stored = 1, max(1, self.path.stat().st_size)
        with self._reading("cannot be read"):
            about = self.file.metadata
            for group in map(about.row_group, range(about.num_row_groups)):
                unfolded = group.total_byte_size
                largest = max(largest, unfolded)
                if unfolded > SMALLEST_BOMB_BYTES and unfolded > MOST_UNFOLDED * stored:
                    raise DataError(
                        f"{self.path} unfolds from {size_text(stored)} to {size_text(unfolded)}, "
                        "which no pictures with captions do"
                    )
        return max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // largest))

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # Arrow raises whatever it trips over in a damaged file
            why = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.path} {what}: {why}") from error
