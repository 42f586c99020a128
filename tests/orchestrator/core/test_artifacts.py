"""The files that both sides share: their formats are promises, so they stand here in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.core.artifacts import (
    DATASET,
    IMAGES,
    LOSSES,
    VALUES,
    ExampleRow,
    Failure,
    ImageRow,
    LossRow,
    RowFile,
    ValueRow,
)
from orchestrator.core.errors import UnreadableFile

PICTURE = {
    "role": "string",
    "concept": "string",
    "prompt": "string",
    "prompt_index": "int64",
    "image_index": "int64",
}
ASKED = ("erased", "star", "a star", 0, 1)


@pytest.mark.parametrize(
    ("file", "row", "columns"),
    [
        (IMAGES, ImageRow(*ASKED, b"png"), {**PICTURE, "png": "binary"}),
        (VALUES, ValueRow(*ASKED, 0.5), {**PICTURE, "value": "double"}),
        (LOSSES, LossRow(1, 0.5), {"step": "int64", "loss": "double"}),
        (
            DATASET,
            ExampleRow(b"png", "a star", "stars: 0", "0" * 64, None),
            {
                "image": "binary",
                "caption": "string",
                "source": "string",
                "sha256": "string",
                "distance": "double",
            },
        ),
    ],
    ids=lambda value: value.name if isinstance(value, RowFile) else "",
)
def test_what_was_written_is_read_and_has_the_columns(
    tmp_path: Path, file: RowFile, row: tuple, columns: dict[str, str]
) -> None:
    for rows in ([row, row], []):
        file.write(tmp_path / file.name, rows)
        assert file.read(tmp_path / file.name) == rows
        schema = pq.read_schema(tmp_path / file.name)
        assert {field.name: str(field.type) for field in schema} == columns


def test_what_must_stand_in_a_row_is_required() -> None:
    assert {c.name for c in DATASET.columns if not c.is_required} == {"distance"}
    assert all(c.is_required for c in (*IMAGES.columns, *VALUES.columns, *LOSSES.columns))


def test_columns_of_another_program_are_left_aside(tmp_path: Path) -> None:
    VALUES.write(tmp_path / "values", [ValueRow(*ASKED, 0.5)])
    table = pq.read_table(tmp_path / "values").append_column("more", [["x"]])
    pq.write_table(table, tmp_path / "values")
    assert VALUES.read(tmp_path / "values") == [ValueRow(*ASKED, 0.5)]


def _without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns([name])


def _as_text(table: pa.Table, name: str) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, pa.array(["x"] * table.num_rows))


def _of_nothing(table: pa.Table, name: str) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, pa.nulls(table.num_rows, table.schema.field(at).type))


ROWS: list[tuple[RowFile, tuple, str]] = [
    (IMAGES, ImageRow(*ASKED, b"png"), "png"),
    (VALUES, ValueRow(*ASKED, 0.5), "value"),
    (LOSSES, LossRow(1, 0.5), "loss"),
    (DATASET, ExampleRow(b"png", "a star", "stars: 0", "0" * 64, 0.5), "image"),
]


@pytest.mark.parametrize(("file", "row", "column"), ROWS, ids=lambda v: getattr(v, "name", ""))
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without, "has no column '{}'"),
        (_as_text, "the column '{}' of .* is of the type string and not"),
        (_of_nothing, "the column '{}' of .* lacks values"),
        (None, "is no Parquet file: "),
    ],
)
def test_a_file_that_is_not_in_its_format_is_refused_in_a_sentence(
    tmp_path: Path,
    file: RowFile,
    row: tuple,
    column: str,
    change: Callable[[pa.Table, str], pa.Table] | None,
    said: str,
) -> None:
    path = tmp_path / file.name
    file.write(path, [row])
    if change is None:
        for content in (b"", b"PAR1", b"x" * 100, path.read_bytes()[:-9], b"PAR1" * 50):
            path.write_bytes(content)
            with pytest.raises(UnreadableFile, match=said):
                file.read(path)
    else:
        pq.write_table(change(pq.read_table(path), column), path)
        with pytest.raises(UnreadableFile, match=said.format(column)):
            file.read(path)


def test_a_failure_is_read_as_it_was_stored_and_of_an_older_store_with_what_it_has() -> None:
    failure = Failure("no luck", "a.log", "nan", ((1, 0.5), (2, 0.25)))
    assert Failure.from_json({"digest": "0" * 64, **failure.to_json()}) == failure
    assert Failure.from_json({"message": "no luck", "log_path": None}) == Failure("no luck", None)
