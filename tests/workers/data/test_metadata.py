"""Tables as people's programs write them: read right, or refused with the line and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.errors import DataError
from workers.bases.shapes import Shapes
from workers.datasets.folder import Folder

BASE = Shapes(Shapes.Settings())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path


def captions(folder: Path, **settings: object) -> tuple[str, ...]:
    dataset = Folder(Folder.Settings(path=str(folder), **settings))
    assert dataset.problems(BASE, "star") == []
    return dataset.examples("star", 8).captions


def problem(folder: Path) -> str:
    """What planning says, which is what reading says."""
    dataset = Folder(Folder.Settings(path=str(folder)))
    [found] = dataset.problems(BASE, "star")
    with pytest.raises(DataError) as raised:
        dataset.examples("star", 8)
    assert str(raised.value) == found
    return found


LINE = '{"file_name": "a.png", "text": "été"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", f"\ufeff{LINE}\n".encode()),
        ("metadata.jsonl", f"{LINE}\r\n\r\n".encode()),
        ("metadata.jsonl", LINE.encode()),
        ("metadata.csv", "\ufefffile_name,text\na.png,été\n".encode()),
        ("metadata.csv", '"file_name","text"\r\na.png,"été"\r\n\r\n'.encode()),
        ("metadata.csv", "text,other,file_name\nété,1,a.png".encode()),
    ],
)
def test_marks_and_ends_of_lines_are_no_text(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert captions(folder) == ("été",)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_unicode_ends_of_lines_within_a_text_end_no_row(folder: Path, form: str, mark: str) -> None:
    text = f"one{mark}two"
    row = {"file_name": "a.png", "text": text}
    path = folder / f"metadata.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif form == "csv":
        path.write_text(f'file_name,text\na.png,"{text}"\n', "utf-8", newline="")
    else:
        path.write_text(json.dumps(row, ensure_ascii=False).replace("\\u000b", mark), "utf-8")
    if form == "jsonl" and mark < " ":
        path.write_text(json.dumps(row), "utf-8")  # JSON has them escaped only
    assert captions(folder) == (text,)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_other_encodings_are_named_with_the_line(folder: Path, form: str, encoding: str) -> None:
    lines = {"jsonl": f"\n{LINE}\n", "csv": "file_name,text\na.png,été\n"}[form]
    (folder / f"metadata.{form}").write_bytes(lines.encode(encoding))
    line = {"cp1252": 2, "utf-16": 1}[encoding]
    found = problem(folder)
    assert f"metadata.{form}:{line}: the byte 0x" in found
    assert "is not UTF-8; save the file as UTF-8" in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file_name;text\na.png;x\n", "needs a column 'file_name', 'text' but has file_name;text"),
        ("file_name\na.png\n", "needs a column 'text' but has file_name"),
        ("", "needs a column 'file_name', 'text' but has "),
        ("file_name,text,text\na.png,x,y\n", "has two columns 'text'; rename one"),
        (f"file_name,text\na.png,{'x' * 200_000}\n", ":2: cannot be read as CSV: field larger"),
        ('file_name,text\na.png,"x\n', ":2: cannot be read as CSV: unexpected end of data"),
        ("file_name,text\na.png,a red, big star\n", ":2: 3 fields but the header has 2; put a"),
        ("file_name,text\na.png\n", ":2: 1 fields but the header has 2"),
    ],
)
def test_a_csv_that_is_not_as_it_seems_is_refused(folder: Path, content: str, said: str) -> None:
    (folder / "metadata.csv").write_text(content)
    found = problem(folder)
    assert said in found
    assert "Traceback" not in found and len(found) < 1000


def test_a_name_that_stands_twice_is_refused(folder: Path) -> None:
    columns = [pa.array(["a.png"]), pa.array(["one"]), pa.array(["two"])]
    table = pa.Table.from_arrays(columns, names=["file_name", "text", "text"])
    pq.write_table(table, folder / "metadata.parquet")
    assert "has two columns 'text'; rename one" in problem(folder)
    (folder / "metadata.parquet").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one", "text": "two"}')
    assert "metadata.jsonl:1: not JSON: the key 'text' stands twice in it" in problem(folder)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])  # of a CSV field Python refuses as much
def test_an_enormous_caption_is_refused(folder: Path, form: str) -> None:
    row = {"file_name": "a.png", "text": "x" * 100_001}
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), folder / "metadata.parquet")
    else:
        (folder / "metadata.jsonl").write_text(json.dumps(row))
    said = "the caption in column 'text' has 100,001 characters; at most 100,000 are read"
    assert f"row 1 (a.png): {said}" in problem(folder)


def test_every_bad_line_is_named_at_once(folder: Path) -> None:
    lines = [
        LINE,
        "{oops",
        "[1]",
        "[" * 100_000,
        '{"file_name": "a.png", "text": ["one", "two"]}',
        '{"file_name": "a.png", "text": 7}',
        '{"file_name": "a.png", "text": "\\ud800"}',
        '{"file_name": 7, "text": "x"}',
        '{"file_name": ".", "text": "x"}',
        '{"file_name": "' + "n" * 5000 + '", "text": "x"}',
        '{"file_name": "a\\u0000.png", "text": "x"}',
        '{"file_name": "~nobody-of-that-name/x.png", "text": "x"}',
        '{"file_name": "https://host/x.png", "text": "x"}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = problem(folder)
    assert f"{len(lines) - 1} bad rows" in found
    for said in (
        "metadata.jsonl:2: not JSON: Expecting property name",
        "metadata.jsonl:3: must be a JSON object but got list",
        "metadata.jsonl:4: not JSON",
        "row 5 (a.png): the caption in column 'text' must be one text but is a list: ['one', 'two'",
        "row 6 (a.png): the caption in column 'text' must be one text but is int: 7",
        "row 7 (a.png): the caption in column 'text' is no valid Unicode",
        "row 8: file_name must be text but is int",
        "row 9 (.): is a folder",
        "row 12 (~nobody-of-that-name/x.png): the file is missing",
        "row 13 (https://host/x.png): the file is missing",
    ):
        assert said in found
    assert len(found) < 6000


@pytest.mark.parametrize("values", [[["a", "b"]], [7], [None], [1.5]])
def test_captions_in_parquet_must_be_texts(folder: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"file_name": ["a.png"], "text": values}), folder / "metadata.parquet")
    assert "row 1 (a.png): " in problem(folder)


@pytest.mark.parametrize("cut", [0, 1, 5, 100])
def test_a_broken_metadata_parquet_is_named(folder: Path, cut: int) -> None:
    path = folder / "metadata.parquet"
    pq.write_table(pa.table({"file_name": ["a.png"], "text": ["x"]}), path)
    path.write_bytes(path.read_bytes()[:cut])
    assert "metadata.parquet is no Parquet file: " in problem(folder)


def test_a_file_without_its_columns_says_what_it_has(folder: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "n": [1]}), folder / "metadata.parquet")
    assert "needs a column 'file_name', 'text' but has image, n" in problem(folder)


def test_a_folder_that_datasets_saved_says_how_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    [found] = Folder(Folder.Settings(path=str(tmp_path))).problems(BASE, "star")
    assert found.endswith(f"write {{hub: {{repository: {tmp_path}}}}}")


def test_hidden_files_and_litter_are_no_rows(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(LINE)
    for name in (".DS_Store", "Thumbs.db", ".hidden.png", "._a.png"):
        (folder / name).write_bytes(b"x")
    (folder / "notes.txt").mkdir()
    assert captions(folder) == ("été",)
