import io
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.errors import DataError, ResurgeError
from workers.bases.shapes import Shapes
from workers.data import parquet_file
from workers.data.parquet_file import ParquetRows
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


def test_a_file_that_unfolds_is_read_a_few_rows_at_a_time(tmp_path):
    """2 kB here are 5.7 GB of rows, which planning counts and looks at without holding them."""
    picture = png("red") + bytes(100_000)
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(57_000, np.int32)), [picture])
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(57_000, np.int32)), ["x"])
    path, table = tmp_path / "data.parquet", pa.table({"image": rows, "text": texts})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    values = ParquetRows(path).values(("image", "text"))
    seen = [len(row["image"]) for row in islice(values, 200)]
    assert seen == [len(picture)] * 200
    assert pa.total_allocated_bytes() - before < 2**26
    values.close()


def test_a_column_that_only_an_attack_would_make_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "SMALLEST_BOMB_BYTES", 2**20)
    path, content = tmp_path / "data.parquet", [bytes(2**22)] * 2
    table = pa.table({"image": content, "text": ["x"] * 2})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    [problem] = dataset(path).problems(BASE, "star")
    assert "data.parquet unfolds from " in problem
    assert "to 8.4 MB, which no pictures with captions do" in problem


def test_pictures_keep_their_places_when_the_seed_chooses(tmp_path):
    colors = [(value, 0, 0) for value in range(0, 250, 10)]
    rows = [{"image": png(c), "text": str(c[0])} for c in colors]
    examples = dataset(write(tmp_path / "data.parquet", rows), size=9, seed=3).examples("star", 8)
    assert [str(image[4, 4, 0]) for image in examples.images] == list(examples.captions)
    assert list(examples.captions) != sorted(examples.captions, key=int)


def test_two_columns_of_one_name(tmp_path):
    column = pa.array([png("red")])
    names = ["image", "image", "text"]
    pq.write_table(pa.table([column, column, pa.array(["x"])], names), tmp_path / "data.parquet")
    [problem] = dataset(tmp_path / "data.parquet").problems(BASE, "star")
    assert "needs a column 'image' with pictures as bytes" in problem


@pytest.mark.parametrize("dictionary", [False, True])
def test_damage_anywhere_is_the_files_and_no_bug(tmp_path, dictionary):
    """In a dictionary too: Arrow does not look by itself whether rows point beyond its end."""
    texts = pa.array([f"text {i % 5}" for i in range(8)])
    table = pa.table(
        {"image": [png("red")] * 8, "text": texts.dictionary_encode() if dictionary else texts}
    )
    file = tmp_path / "data.parquet"
    pq.write_table(table, file, compression="none")
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        file.write_bytes(damaged[: random.integers(len(whole) // 2, 9 * len(whole))])
        found = dataset(file).problems(BASE, "star")
        try:
            dataset(file).examples("star", 8)
        except ResurgeError as error:
            assert len(str(error)) < 5000
        else:
            assert found == []


def test_a_bit_that_is_wrong_anywhere_in_the_footer_ends_no_process(tmp_path):
    path, table = tmp_path / "data.parquet", pa.table({"image": [b"x", None], "text": ["x", "y"]})
    pq.write_table(table, path, store_schema=False)
    content = path.read_bytes()
    refused = 0
    for at in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content) - 8):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            list(ParquetRows(path).values(("image", "text")))
        except DataError:
            refused += 1
    assert refused > 50
