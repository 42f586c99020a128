"""Folders' metadata and Parquet data sets: odd captions, names and encodings, damaged files."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.core.errors import ResurgeError
from tests.fuzz.cases import Area, Fault, damaged
from workers.data.rows import RowsDataset
from workers.datasets.folder import Folder
from workers.datasets.parquet import Parquet

COLORS = {"a.png": (255, 0, 0), "sub/b.png": (0, 0, 255), "c d é.png": (0, 128, 0)}
CAPTIONS = (
    "one", "a red circle", " padded ", "Café", "日本語", "🐈", "e\u0301", "line\nbreak",
    "cr\rlf\r\n",
    "\u2028", "x\u2029y", "\x85", "\x0b\x0c", 'quo"te', "com,ma", "semi;colon", "tab\t", "[/b]",
    "{}", "\ufeffbom", "\\n", "\\u00e9", "'", "x" * 140_000, "null", "None", "nan", "1", "true",
    "=1+1", "#", "//", "\x00", "\x1a", "\ud800", "", " ", "\n", None, 7, 1.5, True, float("nan"),
    [], ["a"], ["a", "b"], {"a": 1}, {"text": "x"}, 10**400,
)  # fmt: skip
NAMES = (
    "missing.png", "", " ", ".", "..", "sub", "../a.png", "/etc/passwd", "a.png ", "A.PNG",
    "a.png\x00", "sub\\b.png", "~nobody/x.png", "x" * 300, "a.png/b", None, 7, [], {"a": 1},
    "metadata.jsonl", "\ud800", "e\u0301.png", "http://x/a.png",
)  # fmt: skip
ENCODINGS = [
    "utf-8",
    "utf-8",
    "utf-8",
    "utf-8-sig",
    "cp1252",
    "utf-16",
    "utf-16-le",
    "latin-1",
    "utf-32",
]
LEFT_OVER = (
    "{", "[]", "null", "[" * 100_000, '{"a":' * 5000, "NaN", '{"text": "x"} {}', "7",
    '{"a": 1, "a": 2}', "'x'",
)  # fmt: skip
TYPES = (
    pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string()), pa.int64(),
    pa.binary(), pa.float64(), pa.null(), pa.timestamp("s"), pa.string_view(),
)  # fmt: skip
ROW = {"file_name": "a.png", "text": "one"}
SIDE = 8


def picture(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), color).save(buffer, "PNG")
    return buffer.getvalue()


def some_rows(rng: random.Random) -> list[dict[str, Any]]:
    """Most are good."""
    rows = [
        {"file_name": rng.choice(list(COLORS)), "text": f"{rng.choice(CAPTIONS[:5])} {i}"}
        for i in range(rng.choice((0, 1, 2, 3, 7)))
    ]
    for row in rows:
        chance = rng.random()
        if chance < 0.25:
            row["text"] = rng.choice(CAPTIONS)
        elif chance < 0.35:
            row["file_name"] = rng.choice(NAMES)
        elif chance < 0.4:
            row.pop(rng.choice(list(row)))
        elif chance < 0.5:
            row[rng.choice(("extra", "", "file_name ", "Text", "image"))] = rng.choice(CAPTIONS)
    return rows


def as_jsonl(rows: list[dict[str, Any]], rng: random.Random) -> tuple[str, bool]:
    """The file's text, and whether it has the rows and nothing else."""
    end = rng.choice(("\n", "\n", "\n", "\r\n", "\n\n"))
    text = end.join(json.dumps(row, ensure_ascii=rng.random() < 0.4) for row in rows)
    if is_more := rng.random() < 0.1:
        text += end + rng.choice(LEFT_OVER)
    return text + rng.choice(("", end)), not is_more


def as_csv(rows: list[dict[str, Any]], rng: random.Random) -> tuple[str, bool]:
    """The file's text, and whether it has the rows and nothing else."""
    buffer = io.StringIO()
    names = list(dict.fromkeys([*ROW, *(name for row in rows for name in row)]))
    rng.shuffle(names)
    writer = csv.DictWriter(
        buffer,
        names,
        lineterminator=rng.choice(("\r\n", "\n")),
        quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    )
    writer.writeheader()
    writer.writerows(rows)
    text = buffer.getvalue()
    if rng.random() < 0.03:  # a name twice: which of the two columns is meant?
        first, _, rest = text.partition("\n")
        text = first.replace("extra", "text").replace('""', '"text"') + "\n" + rest
    if is_more := rng.random() < 0.15:
        text += rng.choice(
            (",,,,,,\n", "a.png\n", "\n\n", '"a.png', 'a.png,"x', "a.png,x,y,z,w\n", "\x00\n")
        )
    return text, not is_more


class Metadata(Area):
    """Rows are refused by number, or read as they were written."""

    name = "metadata"
    full = 2000
    quick = 400

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.place = folder / "set"
        for name, color in COLORS.items():
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_bytes(picture(color))

    def case(self, rng: random.Random) -> str:
        ways: tuple[Callable[[random.Random], str], ...] = (
            self.of_text,
            self.of_text,
            self.of_table,
            self.parquet,
        )
        try:
            return rng.choice(ways)(rng)
        finally:
            for path in self.place.iterdir():
                if path.name not in {name.split("/")[0] for name in COLORS}:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def of_text(self, rng: random.Random) -> str:
        """metadata.csv or .jsonl."""
        rows, form = some_rows(rng), rng.choice(("csv", "jsonl"))
        try:
            text, is_whole = as_csv(rows, rng) if form == "csv" else as_jsonl(rows, rng)
        except csv.Error:
            return "not written"
        encoding = rng.choice(ENCODINGS)
        try:
            content = text.encode(encoding)
        except UnicodeEncodeError:
            content, is_whole = text.encode("utf-8", "surrogatepass"), False
        if rng.random() < 0.3:
            content, is_whole = damaged(content, rng), False
        self.say(f"{form}, {encoding}, rows {rows!r:.2000}, file {content[:2000]!r}")
        self.beside(f"metadata.{form}", content, rng)
        return self.judge(
            Folder(Folder.Settings(path=str(self.place), size=rng.choice((None, None, 1, 2)))),
            rows if is_whole else None,
            form,
        )

    def of_table(self, rng: random.Random) -> str:
        """metadata.parquet."""
        rows = some_rows(rng)
        content = table_file(rows, rng)
        if content is None:
            return "not written"
        is_whole = rng.random() < 0.5
        content = content if is_whole else damaged(content, rng)
        self.say(f"whole {is_whole}, rows {rows!r:.2000}, file {content.hex()[:4000]}")
        self.beside("metadata.parquet", content, rng)
        dataset = Folder(Folder.Settings(path=str(self.place)))
        return self.judge(dataset, rows if is_whole else None, "parquet")

    def beside(self, name: str, content: bytes, rng: random.Random) -> None:
        """The metadata, and now and then what file managers and people leave beside it."""
        if (chance := rng.random()) < 0.02:
            (self.place / name).mkdir()
        elif chance < 0.04:
            (self.place / name).symlink_to(rng.choice(("nowhere", name)))
        else:
            (self.place / name).write_bytes(content)
        if rng.random() < 0.2:
            left = self.place / rng.choice((".DS_Store", "Thumbs.db", "notes.txt", "metadata.txt"))
            rng.choice((left.mkdir, left.touch, lambda: left.symlink_to("nowhere")))()

    def parquet(self, rng: random.Random) -> str:
        """A Parquet file with pictures."""
        rows = [
            {"image": pictured(row.get("file_name"), rng), "text": row.get("text")}
            for row in some_rows(rng)
        ]
        content = table_file(rows, rng)
        if content is None:
            return "not written"
        is_whole = rng.random() < 0.5
        if rng.random() < 0.02:
            content, is_whole = unfolding(), False
        elif not is_whole:
            content = damaged(content, rng)
        self.say(f"parquet, whole {is_whole}, rows {rows!r:.2000}, file {content.hex()[:4000]}")
        path = self.place / "data.parquet"
        path.write_bytes(content)
        return self.judge(Parquet(Parquet.Settings(path=str(path))), None, "parquet")

    def judge(self, dataset: RowsDataset, rows: list[dict[str, Any]] | None, form: str) -> str:
        """Refused by what planning and reading say alike, or what was written; rows: if known."""
        try:
            dataset.fingerprint()
        except ResurgeError:
            return "refused"
        try:
            found = dataset.problems(None, "star")  # type: ignore[arg-type]
            count = None if found else dataset.count()
        except ResurgeError as error:
            found, count = [str(error)], None
        try:
            examples = dataset.examples("star", SIDE)
        except ResurgeError as error:
            if not found and rows is not None:
                raise Fault(f"planning accepts what reading refuses: {error}") from error
            return "refused"
        if found:
            raise Fault(f"planning refuses what is read: {found}")
        if len(examples) != count:
            raise Fault(f"{len(examples)} examples, counted {count}")
        if any(not isinstance(text, str) or not text.strip() for text in examples.captions):
            raise Fault(f"captions {examples.captions!r}")
        if rows is None:
            return "damaged and read"
        given = [(row.get("text"), row.get("file_name")) for row in rows]
        if form != "jsonl":  # a column has one type
            given = [("" if text is None else str(text), name) for text, name in given]
        chosen = [given[_number(source) - 1] for source in examples.sources]
        if dataset.settings.size is None and len(chosen) != len(rows):
            raise Fault(f"{len(chosen)} of {len(rows)} rows")
        found_rows = zip(examples.captions, examples.images, strict=True)
        for (text, name), (caption, image) in zip(chosen, found_rows, strict=True):
            if text != caption:
                raise Fault(f"caption {caption!r:.300} and not {text!r:.300}")
            color = COLORS.get(str(name))
            if color is None:
                raise Fault(f"a picture for {name!r}")
            if not np.array_equal(image[0, 0], color):
                raise Fault(f"another picture for {name!r}")
        return "right"


def _number(source: str) -> int:
    """Of "row 7 (a.png)"."""
    return int(source.split()[1])


def pictured(name: Any, rng: random.Random) -> Any:
    path = name if isinstance(name, str) else None
    content = picture(COLORS[path]) if path in COLORS else b"no picture"
    odd = ({"bytes": content, "path": path}, {"bytes": None, "path": "a.png"}, None, [content])
    return rng.choice((content, content, content, content.hex(), *odd))


def table_file(rows: list[dict[str, Any]], rng: random.Random) -> bytes | None:
    """A Parquet file of rows, of whatever types; None where Arrow knows none for them."""
    try:
        table = _table(rows)
        if "text" in table.column_names and rng.random() < 0.4:
            kind = rng.choice(TYPES)
            at = table.column_names.index("text")
            table = table.set_column(at, "text", table["text"].cast(kind))
        if table.num_columns and rng.random() < 0.05:
            table = table.append_column("text", table[table.column_names[0]])
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression=rng.choice(("none", "snappy", "zstd", "gzip", "brotli", "lz4")),
            row_group_size=rng.choice((None, 1, 2)),
            use_dictionary=rng.random() < 0.5,
        )
    except (pa.ArrowException, OverflowError, TypeError, ValueError, KeyError, UnicodeError):
        return None
    return bytes(sink.getvalue())


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Columns whose values have no type in common become text."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            columns[name] = pa.array([None if v is None else str(v) for v in values])
    return pa.table(columns)


def unfolding() -> bytes:
    """A small file that means gigabytes: the same large caption very often."""
    text = pa.array(["x" * 2_000_000])
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, dtype=np.int32)), text)
    image = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(3000, dtype=np.int32)), pa.array([picture((255, 0, 0))])
    )
    sink = pa.BufferOutputStream()
    table = pa.table({"image": image.cast(pa.binary()), "text": many})
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
