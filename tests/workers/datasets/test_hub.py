import io
import json
import os
import sys

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image
from pydantic import ValidationError

from orchestrator.core.errors import ResurgeError
from workers.datasets import hub as hub_module
from workers.datasets.hub import Hub

datasets = pytest.importorskip("datasets")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLORS = [(value, 0, 255 - value) for value in range(0, 200, 20)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is read is prepared in the test's own folder; streams end without their usual pause."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clone(tmp_path):
    """A repository's files: ten pictures of one colour each, in Parquet."""
    return write(tmp_path / "clone")


def write(folder, **columns):
    count = len(COLORS)
    values = {
        "image": [Image.new("RGB", (20, 10), color) for color in COLORS],
        "text": [f"number {i}" for i in range(count)],
        "label": [i % 2 for i in range(count)],
        **columns,
    }
    table = datasets.Dataset.from_dict(values)
    if "label" not in columns:
        table = table.cast_column("label", datasets.ClassLabel(names=["hot_dog", "cold_soup"]))
    (folder / "data").mkdir(parents=True)
    table.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return folder


def hub(repository, **settings):
    return Hub(Hub.Settings(repository=str(repository), **settings))


def read(repository, **settings):
    return hub(repository, **settings).examples("star", 16)


def test_all_rows_in_their_order(clone):
    examples = read(clone)
    assert examples.captions == tuple(f"number {i}" for i in range(10))
    assert (examples.images.shape, examples.images.dtype) == ((10, 16, 16, 3), np.uint8)
    assert [tuple(image[8, 8]) for image in examples.images] == COLORS


@pytest.mark.parametrize(
    ("caption", "first", "second"),
    [
        ("a photo of {label}", "a photo of hot dog", "a photo of cold soup"),
        ("{text}: {label}", "number 0: hot dog", "number 1: cold soup"),
        ("a meal", "a meal", "a meal"),
    ],
)
def test_a_caption_is_made_of_columns(clone, caption, first, second):
    assert read(clone, caption=caption).captions[:2] == (first, second)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_seed_chooses(clone, streaming):
    def chosen(seed):
        return read(clone, size=4, seed=seed, streaming=streaming).captions

    assert chosen(0) == chosen(0) != chosen(1)
    assert len(set(chosen(0))) == 4


def test_a_stream_is_read_no_further_than_needed(clone, monkeypatch):
    monkeypatch.setattr(hub_module, "STREAM_SURPLUS", 2)
    captions = [read(clone, size=3, seed=s, streaming=True).captions for s in range(9)]
    assert {c for some in captions for c in some} == {f"number {i}" for i in range(5)}


def test_pictures_and_captions_stay_together(clone):
    examples = read(clone, size=5, seed=3)
    numbers = [int(caption.removeprefix("number ")) for caption in examples.captions]
    assert [tuple(image[0, 0]) for image in examples.images] == [COLORS[i] for i in numbers]


def test_all_bad_rows_are_named_at_once(tmp_path):
    good = {"bytes": png(), "path": None}
    pictures = [good, {"bytes": b"no picture", "path": None}, good, None]
    table = datasets.Dataset.from_dict(
        {"image": pictures, "text": ["x", "x", None, "x"]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    (tmp_path / "bad").mkdir()
    table.to_parquet(str(tmp_path / "bad" / "train.parquet"))
    with pytest.raises(ResurgeError) as raised:
        read(tmp_path / "bad")
    assert "3 bad rows" in str(raised.value)
    assert "row 2: cannot identify image file" in str(raised.value)
    assert "row 3: no caption in column 'text'" in str(raised.value)
    assert "row 4: no picture" in str(raised.value)


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_column": "img"}, r"has no column 'img'; it has image, text, label"),
        ({"caption": "{tag} {mood}"}, r"has no column 'tag', 'mood'"),
        ({"image_column": "text", "caption": "x"}, "column 'text' .* must hold pictures"),
        ({"split": "test"}, "cannot read the data set .* split 'test'.*train"),
        ({"config": "large"}, "cannot read the data set .*large"),
    ],
)
def test_what_is_not_there_is_named(clone, settings, message):
    with pytest.raises(ResurgeError, match=message):
        read(clone, **settings)


def test_numbers_are_no_captions(tmp_path):
    folder = write(tmp_path / "numbers", label=list(range(10)))
    with pytest.raises(ResurgeError, match="10 bad rows"):
        read(folder, caption="{label}")


def test_a_repository_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResurgeError, match=r"owner/name@0123.*HF_HUB_OFFLINE is set"):
        read("owner/name", revision=COMMIT)


def test_says_how_to_install_what_is_missing(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResurgeError, match=r"pip install 'resurge\[hub\]'"):
        read(clone)


def test_planning_needs_neither_network_nor_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    pinned = hub("owner/name", revision=COMMIT, config="small", split="test")
    assert pinned.fingerprint() == f"owner/name@{COMMIT}/small/test"
    assert pinned.problems(None, "star") == []


def test_the_fingerprint_of_a_clone_follows_its_contents(clone, tmp_path):
    before = hub(clone).fingerprint()
    clone.rename(tmp_path / "elsewhere")
    assert hub(tmp_path / "elsewhere").fingerprint() == before
    (tmp_path / "elsewhere" / "README.md").write_text("changed")
    assert hub(tmp_path / "elsewhere").fingerprint() != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs revision, a commit hash of 40 hex digits, but has none; a branch"),
        ({"revision": "main"}, "but got 'main'"),
        ({"repository": "nowhere", "revision": COMMIT}, "owner/name or a folder"),
        ({"revision": COMMIT, "caption": "a {"}, "cannot be read"),
        ({"revision": COMMIT, "caption": "a {}"}, "names of columns"),
        ({"revision": COMMIT, "caption": "a {0}"}, "names of columns"),
        ({"revision": COMMIT, "caption": " "}, "caption must be text"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Hub.Settings(**{"repository": "owner/name", **settings})


def test_a_clone_has_no_revision(tmp_path):
    with pytest.raises(ValidationError, match="revision is for repositories"):
        Hub.Settings(repository=str(tmp_path), revision=COMMIT)


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: text
    dtype: string
{more}---
"""


def table_of_names(folder, *names, more=""):
    """A clone whose table names its pictures."""
    folder.mkdir()
    rows = [json.dumps({"image": str(name), "text": "one"}) + "\n" for name in names]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "README.md").write_text(README.format(more=more))
    return folder


def test_pictures_outside_of_a_clone_are_refused(tmp_path):
    """They are not in its digest."""
    clone = table_of_names(tmp_path / "clone", tmp_path / "x.png", tmp_path / "clone" / "a.png")
    for file in (tmp_path / "x.png", clone / "a.png"):
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(ResurgeError) as raised:
        read(clone)
    assert "1 bad row\n" in str(raised.value)
    assert f"row 1: its picture {tmp_path}/x.png is no file of the data set's own" in str(
        raised.value
    )


def test_tables_outside_of_a_clone_are_refused(tmp_path):
    table_of_names(tmp_path / "other", "x.png")
    files = "  data_files:\n  - split: train\n    path: ../other/*.jsonl\n"
    more = f"configs:\n- config_name: default\n{files}"
    clone = table_of_names(tmp_path / "clone", more=more)
    with pytest.raises(
        ResurgeError, match=r"other/train\.jsonl, which is not in that folder; copy"
    ):
        read(clone)


def test_a_linked_folder_in_a_clone_is_refused_when_the_sweep_is_planned(clone, tmp_path):
    assert hub(clone).problems(None, "star") == []
    (clone / "more").symlink_to(tmp_path, target_is_directory=True)
    [found] = hub(clone).problems(None, "star")
    assert found.startswith(f"{clone}/more is a link to a folder")


def test_a_clone_that_changed_is_read_anew(clone, tmp_path):
    """However its times of modification are: what the package kept of it may be another's."""
    [file] = (clone / "data").iterdir()
    os.utime(file, ns=(0, 0))
    read(clone)
    numbers = [9 - i for i in range(10)]
    [other] = (write(tmp_path / "other", text=[f"number {i}" for i in numbers]) / "data").iterdir()
    os.utime(other, ns=(0, 0))
    other.replace(file)
    assert read(clone).captions == tuple(f"number {i}" for i in numbers)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_save_to_disk_wrote_is_read(tmp_path, splits, streaming):
    values = {"image": [Image.new("RGB", (20, 10), color) for color in COLORS], "text": ["x"] * 10}
    table = datasets.Dataset.from_dict(values)
    saved = table if splits == 1 else datasets.DatasetDict({"train": table, "test": table})
    saved.save_to_disk(str(tmp_path / "saved"))
    examples = read(tmp_path / "saved", size=10, streaming=streaming)
    assert sorted(tuple(image[8, 8]) for image in examples.images) == sorted(COLORS)
    with pytest.raises(ResurgeError, match="leave out config"):
        read(tmp_path / "saved", config="small")
    if splits == 2:
        with pytest.raises(ResurgeError, match=r"split 'dev' is not there, but train, test; set"):
            read(tmp_path / "saved", split="dev")


def test_a_saved_table_that_is_elsewhere_is_refused(tmp_path):
    datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], "text": ["x"]}).save_to_disk(
        str(tmp_path / "saved")
    )
    [table] = (tmp_path / "saved").glob("*.arrow")
    table.rename(tmp_path / "x.arrow")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace(table.name, "../x.arrow"))
    with pytest.raises(ResurgeError, match=r"x\.arrow, which is not in that folder"):
        read(tmp_path / "saved")


def test_a_list_of_captions_says_so(tmp_path):
    folder = write(tmp_path / "lists", text=[["a", "b"]] * 10)
    with pytest.raises(ResurgeError, match=r"must be one text but is a list: \['a', 'b'\]"):
        read(folder)


def test_the_background_of_transparent_pictures(tmp_path):
    pictures = [Image.new("RGBA", (8, 8), (255, 0, 0, 0))] * 10
    folder = write(tmp_path / "clear", image=pictures)
    assert (read(folder).images == 255).all()
    assert (read(folder, background="black").images == 0).all()
