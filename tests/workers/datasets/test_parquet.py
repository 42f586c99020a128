import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.errors import ResurgeError
from workers.bases.shapes import Shapes
from workers.data.prepared import write_examples
from workers.datasets.parquet import Parquet
from workers.datasets.related import Related

BASE = Shapes(Shapes.Settings())


def png(color, size=(20, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def dataset(path, **settings):
    return Parquet(Parquet.Settings(path=str(path), **settings))


@pytest.fixture
def file(tmp_path):
    rows = [{"image": png("red"), "text": "one"}, {"image": png("blue"), "text": "two"}]
    return write(tmp_path / "data.parquet", rows)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": None}])
def test_pictures_are_bytes_or_a_struct_with_bytes(tmp_path, wrap):
    rows = [{"image": wrap(png("red")), "text": "one"}, {"image": wrap(png("blue")), "text": "two"}]
    examples = dataset(write(tmp_path / "data.parquet", rows)).examples("star", 16)
    assert examples.captions == ("one", "two")
    assert examples.sources == ("row 1", "row 2")
    assert examples.images.shape == (2, 16, 16, 3)
    assert examples.images[1, 8, 8].tolist() == [0, 0, 255]


def test_other_columns(tmp_path):
    path = write(tmp_path / "data.parquet", [{"png": png("red"), "prompt": "hello"}])
    chosen = dataset(path, image_column="png", caption_column="prompt")
    assert chosen.examples("star", 16).captions == ("hello",)


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"image": b"x", "caption": "x"}, r"'text' with text .* \(string\); set caption_column"),
        ({"picture": b"x", "text": "x"}, r"'image' with pictures .* \(string\); set image_column"),
        ({"image": "a.png", "text": "x"}, r"'image' with pictures as bytes .*image \(string\)"),
        ({"image": b"x", "text": 7}, r"'text' with text .*text \(int64\)"),
    ],
)
def test_a_wrong_schema_says_what_is_there(tmp_path, row, missing):
    broken = dataset(write(tmp_path / "data.parquet", [row]))
    with pytest.raises(ResurgeError, match=missing):
        broken.examples("star", 16)
    assert len(broken.problems(BASE, "star")) == 1


def test_what_is_no_parquet_file(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"no parquet")
    assert "is no Parquet file" in dataset(tmp_path / "data.parquet").problems(BASE, "star")[0]
    assert "is a folder" in dataset(tmp_path).problems(BASE, "star")[0]
    assert "does not exist" in dataset(tmp_path / "nowhere").problems(BASE, "star")[0]


def test_all_bad_rows_are_named_at_once(tmp_path):
    rows = [
        {"image": png("red"), "text": None},
        {"image": b"no picture", "text": "x"},
        {"image": None, "text": "x"},
        {"image": png("red", (1, 1)), "text": "x"},
        {"image": png("red"), "text": "x"},
    ]
    [problem] = dataset(write(tmp_path / "data.parquet", rows)).problems(BASE, "star")
    assert "4 bad rows" in problem
    for beginning in ("row 1: no caption", "row 2: cannot identify", "row 3: no", "row 4: the"):
        assert beginning in problem


def test_no_rows_at_all(tmp_path):
    schema = pa.schema([("image", pa.binary()), ("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "data.parquet")
    assert "has no rows" in dataset(tmp_path / "data.parquet").problems(BASE, "star")[0]


def test_size_and_seed(file):
    assert dataset(file).count() == 2
    assert len(dataset(file, size=1).examples("star", 16)) == 1
    assert "lower size" in dataset(file, size=3).problems(BASE, "star")[0]


def test_the_fingerprint_follows_the_contents(file):
    before = dataset(file).fingerprint()
    write(file, [{"image": png("green"), "text": "one"}])
    assert dataset(file).fingerprint() != before


def test_a_prepared_data_set_is_such_a_file(tmp_path):
    examples = Related(Related.Settings(size=5)).examples("star", 32).named("related")
    write_examples(tmp_path / "dataset.parquet", examples)
    again = dataset(tmp_path / "dataset.parquet", caption_column="caption").examples("star", 32)
    assert again.captions == examples.captions
    assert np.array_equal(again.images, examples.images)
