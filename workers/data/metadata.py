"""The table of a folder of pictures: metadata.jsonl, .csv or .parquet, row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.core.errors import DataError
from workers.data.parquet_file import ParquetRows

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
"""What the package datasets leaves where `save_to_disk` wrote a data set."""


@dataclass(frozen=True)
class Entry:
    """A row as it is written; `fault` says why it cannot be read, and `name` then where it is."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def read_entries(path: Path, columns: Collection[str]) -> Iterator[Entry]:
    """Every row; of a Parquet file these columns only, and no table may be without them all.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is no table with these columns.
    """
    if path.suffix == ".parquet":
        rows = ParquetRows(path)
        _check_columns(path, columns, rows.columns)
        values = rows.values(columns)
        return (Entry(f"row {number}", row) for number, row in enumerate(values, start=1))
    text = text_of(path)
    return _csv(path, text, columns) if path.suffix == ".csv" else _jsonl(path, text)


def text_of(path: Path) -> str:
    """A file's text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")  # Excel begins its files with a mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: the byte {content[error.start]:#04x} is not UTF-8; save the file as "
            "UTF-8 (in Excel: 'CSV UTF-8')"
        ) from error


def _jsonl(path: Path, text: str) -> Iterator[Entry]:
    row = 0
    # Not splitlines, which parts at U+2028 too, and that may stand within JSON's texts.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row += 1
        where = f"{path}:{number}"
        try:
            values = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            yield Entry(where, fault=f"not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Entry(f"row {row}", values)
        else:
            got = type(values).__name__
            yield Entry(where, fault=f"must be a JSON object but got {got}")


def _csv(path: Path, text: str, columns: Collection[str]) -> Iterator[Entry]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, [])
        _check_columns(path, columns, header)
        for row, values in enumerate(filter(None, lines), start=1):
            if len(values) == len(header):
                yield Entry(f"row {row}", dict(zip(header, values, strict=True)))
            else:
                fault = f"{len(values)} fields but the header has {len(header)}; put a text"
                yield Entry(f"{path}:{lines.line_num}", fault=f"{fault} with a comma in quotes")
    except csv.Error as error:
        raise DataError(f"{path}:{lines.line_num}: cannot be read as CSV: {error}") from error


def _check_columns(path: Path, needed: Collection[str], there: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in there]:
        raise DataError(
            f"{path} needs a column {', '.join(map(repr, missing))} but has {', '.join(there)}"
        )
    for name in needed:
        if there.count(name) > 1:
            raise DataError(f"{path} has two columns {name!r}; rename one of them")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's values, whose names must differ."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in it")
    return values
