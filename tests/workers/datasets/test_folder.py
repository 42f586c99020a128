import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.core.errors import ResurgeError
from workers.bases.shapes import Shapes
from workers.datasets.folder import Folder

SHAPES_BASE = Shapes(Shapes.Settings())
ROWS = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub/b.png", "text": "two"}]


def picture(color, size=(20, 10)):
    return Image.new("RGB", size, color)


def write_metadata(folder, form, rows):
    path = folder / f"metadata.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    picture("red").save(tmp_path / "a.png")
    picture("blue").save(tmp_path / "sub" / "b.png")
    return tmp_path


def dataset(path, **settings):
    return Folder(Folder.Settings(path=str(path), **settings))


def assert_red_and_blue(examples):
    assert examples.captions == ("one", "two")
    assert examples.images.shape == (2, 16, 16, 3)
    assert examples.images[0, 8, 8].tolist() == [255, 0, 0]
    assert examples.images[1, 8, 8].tolist() == [0, 0, 255]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_an_imagefolder_is_read_whatever_its_metadatas_form(folder, form):
    write_metadata(folder, form, ROWS)
    assert_red_and_blue(dataset(folder).examples("star", 16))


def test_another_caption_column(folder):
    write_metadata(folder, "jsonl", [{"file_name": "a.png", "caption": "hello"}])
    assert dataset(folder, caption_column="caption").examples("star", 16).captions == ("hello",)


def test_wide_pictures_are_cropped_not_squeezed(folder):
    wide = picture("white", (30, 10))
    wide.paste((0, 0, 0), (10, 0, 20, 10))
    wide.save(folder / "a.png")
    write_metadata(folder, "jsonl", ROWS[:1])
    assert np.all(dataset(folder).examples("star", 10).images == 0)


def test_all_bad_rows_are_named_at_once(folder):
    write_bad_rows(folder)
    with pytest.raises(ResurgeError) as raised:
        dataset(folder).examples("star", 16)
    assert_names_bad_rows(str(raised.value))


def test_bad_rows_are_known_when_the_sweep_is_planned(folder):
    write_bad_rows(folder)
    [problem] = dataset(folder).problems(SHAPES_BASE, "star")
    assert_names_bad_rows(problem)


def write_bad_rows(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    picture("red", (1, 1)).save(folder / "dot.png")
    rows = [
        *ROWS,
        {"file_name": "missing.png", "text": "x"},
        {"file_name": "broken.png", "text": "x"},
        {"file_name": "a.png"},
        {"text": "x"},
        {"file_name": "a.png", "text": " "},
        {"file_name": "dot.png", "text": "x"},
    ]
    write_metadata(folder, "jsonl", rows)


def assert_names_bad_rows(message):
    assert "6 bad rows" in message
    assert "row 3 (missing.png): the file is missing" in message
    assert "row 4 (broken.png): cannot identify image file" in message
    assert "row 5 (a.png): no caption in column 'text'" in message
    assert "row 6: no picture" in message
    assert "row 7 (a.png): no caption" in message
    assert "row 8 (dot.png): the picture has 1 × 1 pixels; at least 4 × 4 are needed" in message


def test_a_picture_that_is_cut_short_is_named_when_it_is_read(folder):
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[:-30])
    write_metadata(folder, "jsonl", ROWS)
    with pytest.raises(ResurgeError, match=r"1 bad row\n  row 1 \(a\.png\)"):
        dataset(folder).examples("star", 16)


def test_a_flood_of_bad_rows_is_counted(folder):
    write_metadata(folder, "jsonl", [{"file_name": "no.png", "text": "x"}] * 60)
    [problem] = dataset(folder).problems(SHAPES_BASE, "star")
    assert "60 bad rows" in problem
    assert problem.endswith("… and 10 more")


def test_the_size_is_chosen_by_the_seed(folder):
    write_metadata(folder, "jsonl", ROWS * 10)
    chosen = [dataset(folder, size=5, seed=s).examples("star", 16).sources for s in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(set(sources)) for sources in chosen] == [5] * 3


def test_a_size_larger_than_the_set(folder):
    write_metadata(folder, "jsonl", ROWS)
    [problem] = dataset(folder, size=3).problems(SHAPES_BASE, "star")
    assert problem.endswith("has 2 pictures but size is 3; lower size")


def test_a_line_that_is_not_json_is_named(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{oops\n')
    with pytest.raises(ResurgeError, match=r"metadata\.jsonl:2: not JSON"):
        dataset(folder).examples("star", 16)


def test_no_rows_at_all(folder):
    write_metadata(folder, "jsonl", [])
    with pytest.raises(ResurgeError, match="has no rows"):
        dataset(folder).examples("star", 16)


def test_problems_before_anything_runs(folder, tmp_path):
    assert "does not exist" in dataset(tmp_path / "nowhere").problems(SHAPES_BASE, "star")[0]
    assert "metadata.jsonl" in dataset(folder).problems(SHAPES_BASE, "star")[0]
    [hint] = dataset(tmp_path / "data.parquet").problems(SHAPES_BASE, "star")
    assert "{parquet: {path:" in hint
    write_metadata(folder, "jsonl", ROWS)
    assert dataset(folder).problems(SHAPES_BASE, "star") == []


def test_the_fingerprint_follows_the_contents_and_not_the_place(folder, tmp_path_factory):
    write_metadata(folder, "jsonl", ROWS)
    before = dataset(folder).fingerprint()
    elsewhere = tmp_path_factory.mktemp("copy") / "copy"
    folder.rename(elsewhere)
    assert dataset(elsewhere).fingerprint() == before
    picture("green").save(elsewhere / "a.png")
    assert dataset(elsewhere).fingerprint() != before
