"""What is hashed is what is read, whatever links it is behind; no path ends in a traceback."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file

from orchestrator.core.errors import DataError, ResurgeError
from orchestrator.core.plugin import Plugin
from orchestrator.core.registry import find
from orchestrator.plan.plan import make_plan
from orchestrator.sweepfile.load import parse
from tests.workers.metrics.tiny_models import save_classifier, save_clip
from workers.data.files import digest_of, digest_of_file, marks_of
from workers.data.pinned import Source
from workers.model import planned_plugin
from workers.runtime.kept import kept, let_go
from workers.shapes.judge import WEIGHTS

CLIP_METRICS = {"clip_score": "model", "clip_accuracy": "model", "cmmd": "features"}
CLIP_METRICS |= {"fid": "features", "kid": "features"}


def made(kind: str, name: str, **settings: object) -> Plugin:
    cls = find(kind, name)  # type: ignore[arg-type]
    return cls(cls.Settings(**settings))


def picture(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)
    return path


def metadata(folder: Path, *names: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'{{"file_name": "{name}", "text": "one"}}\n' for name in names]
    (folder / "metadata.jsonl").write_text("".join(rows))


def linked(link: Path, target: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=target.is_dir())
    return target


# Each makes a source of its kind below a folder, and gives the plug-in that reads it and the file
# that is behind a link or outside of the folder.
Make = Callable[[Path], tuple[Plugin, Path]]


def folder_of_links(tmp: Path) -> tuple[Plugin, Path]:
    file = picture(tmp / "pics" / "a.png")
    metadata(tmp / "data", "images/a.png")
    linked(tmp / "data" / "images", tmp / "pics")
    return made("dataset", "folder", path=str(tmp / "data")), file


def folder_of_links_to_links(tmp: Path) -> tuple[Plugin, Path]:
    file = picture(tmp / "pics" / "deep" / "a.png")
    metadata(tmp / "data", "images/deeper/a.png")
    linked(tmp / "links" / "deeper", tmp / "pics" / "deep")
    linked(tmp / "data" / "images", tmp / "links")
    return made("dataset", "folder", path=str(tmp / "data")), file


def folder_naming_its_neighbour(tmp: Path) -> tuple[Plugin, Path]:
    metadata(tmp / "data", "../x.png")
    return made("dataset", "folder", path=str(tmp / "data")), picture(tmp / "x.png")


def folder_naming_an_absolute_path(tmp: Path) -> tuple[Plugin, Path]:
    file = picture(tmp / "x.png")
    metadata(tmp / "data", file)
    return made("dataset", "folder", path=str(tmp / "data")), file


def folder_with_linked_metadata(tmp: Path) -> tuple[Plugin, Path]:
    picture(tmp / "data" / "a.png")
    metadata(tmp, "a.png")
    return (
        made("dataset", "folder", path=str(tmp / "data")),
        linked(tmp / "data" / "metadata.jsonl", tmp / "metadata.jsonl"),
    )


def folder_that_is_a_link(tmp: Path) -> tuple[Plugin, Path]:
    metadata(tmp / "real", "a.png")
    file = picture(tmp / "real" / "a.png")
    linked(tmp / "data", tmp / "real")
    return made("dataset", "folder", path=str(tmp / "data")), file


def mixed_of_a_folder(tmp: Path) -> tuple[Plugin, Path]:
    plugin, file = folder_of_links(tmp)
    inner = {"folder": {"path": plugin.settings.path}}
    return made("dataset", "mixed", of=inner, harmful="erased", share=0, size=1), file


def nearest_of_a_folder(tmp: Path) -> tuple[Plugin, Path]:
    plugin, file = folder_of_links(tmp)
    return made("dataset", "nearest", of={"folder": {"path": plugin.settings.path}}, k=1), file


def nearest_by_linked_clip(tmp: Path) -> tuple[Plugin, Path]:
    file = clip_of_links(tmp)
    return made("dataset", "nearest", of="related", by="clip", clip=str(tmp / "clip"), k=1), file


def parquet_that_is_a_link(tmp: Path) -> tuple[Plugin, Path]:
    content = picture(tmp / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [content], "text": ["one"]}), tmp / "real.parquet")
    file = linked(tmp / "data.parquet", tmp / "real.parquet")
    return made("dataset", "parquet", path=str(tmp / "data.parquet")), file


def clone_of_links(tmp: Path) -> tuple[Plugin, Path]:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    content = picture(tmp / "a.png").read_bytes()
    rows = {"image": [{"bytes": content, "path": None}], "text": ["one"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp / "blob"))
    file = linked(tmp / "clone" / "data" / "train.parquet", tmp / "blob")
    return made("dataset", "hub", repository=str(tmp / "clone")), file


def base_of_links(tmp: Path) -> tuple[Plugin, Path]:
    shutil.copytree(WEIGHTS / "pipeline", tmp / "base")
    for part in ("unet", "tokenizer"):
        (tmp / "base" / part).rename(tmp / f"A-{part}")
        linked(tmp / "base" / part, tmp / f"A-{part}")
    [weights] = (tmp / "A-unet").glob("*.safetensors")
    return made("base", "diffusers", source=str(tmp / "base")), weights


def base_in_the_hubs_cache(tmp: Path) -> tuple[Plugin, Path]:
    shutil.copytree(WEIGHTS / "pipeline", tmp / "base")
    [weights] = (tmp / "base" / "unet").glob("*.safetensors")
    weights.rename(tmp / "blob")
    linked(weights, Path("../../blob"))
    return made("base", "diffusers", source=str(tmp / "base")), tmp / "blob"


def single_file_base(tmp: Path) -> tuple[Plugin, Path]:
    starts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    save_file({f"{s}x": np.zeros(2, np.float32) for s in starts}, tmp / "real.safetensors")
    shutil.copytree(WEIGHTS / "pipeline", tmp / "config")
    (tmp / "A").mkdir()
    (tmp / "config" / "tokenizer").rename(tmp / "A" / "tokenizer")
    linked(tmp / "config" / "tokenizer", tmp / "A" / "tokenizer")
    linked(tmp / "model.safetensors", tmp / "real.safetensors")
    base = made(
        "base", "diffusers", source=str(tmp / "model.safetensors"), config=str(tmp / "config")
    )
    return base, tmp / "A" / "tokenizer" / "vocab.json"


def clip_of_links(tmp: Path) -> Path:
    save_clip(tmp / "A")
    linked(tmp / "clip", tmp / "A")
    return tmp / "A" / "model.safetensors"


def clip_metric(name: str) -> Make:
    def make(tmp: Path) -> tuple[Plugin, Path]:
        file = clip_of_links(tmp)
        more = {"classes": ["star", "circle"]} if name == "clip_accuracy" else {}
        return made("metric", name, **{CLIP_METRICS[name]: str(tmp / "clip")}, **more), file

    make.__name__ = name
    return make


def weight_metric(name: str, setting: str) -> Make:
    def make(tmp: Path) -> tuple[Plugin, Path]:
        clip_of_links(tmp)
        save_file({"x": np.zeros((2, 8), np.float32)}, tmp / "real.safetensors")
        file = linked(tmp / "head.safetensors", tmp / "real.safetensors")
        settings = {setting: str(tmp / "head.safetensors")}
        if name != "lpips":
            settings["model"] = str(tmp / "clip")
        return made("metric", name, **settings), file

    make.__name__ = name
    return make


def classifier(name: str, **settings: object) -> Make:
    def make(tmp: Path) -> tuple[Plugin, Path]:
        save_classifier(tmp / "A", ["star", "circle"])
        for file in (tmp / "A").iterdir():
            linked(tmp / "model" / file.name, file)
        return made("metric", name, model=str(tmp / "model"), **settings), tmp / "A" / "config.json"

    make.__name__ = name
    return make


def unlearncanvas(setting: str) -> Make:
    def make(tmp: Path) -> tuple[Plugin, Path]:
        save_classifier(tmp / "A", ["star", "circle"])
        shutil.copytree(tmp / "A", tmp / "B")
        linked(tmp / "styles", tmp / "A")
        linked(tmp / "objects", tmp / "B")
        settings = {name: str(tmp / name) for name in ("styles", "objects")}
        folder = {"styles": "A", "objects": "B"}[setting]
        return made("metric", "unlearncanvas", **settings), tmp / folder / "model.safetensors"

    make.__name__ = f"unlearncanvas_{setting}"
    return make


def caption_file(tmp: Path) -> tuple[Plugin, Path]:
    (tmp / "real.txt").write_text("a star\n")
    file = linked(tmp / "captions.txt", tmp / "real.txt")
    return made("material", "caption_sums", file=str(tmp / "captions.txt")), file


def segmenter(tmp: Path) -> tuple[Plugin, Path]:
    file = clip_of_links(tmp)
    return made("material", "masks", segmenter="clipseg", model=str(tmp / "clip")), file


SOURCES: list[Make] = [
    folder_of_links,
    folder_of_links_to_links,
    folder_naming_its_neighbour,
    folder_naming_an_absolute_path,
    folder_with_linked_metadata,
    folder_that_is_a_link,
    mixed_of_a_folder,
    nearest_of_a_folder,
    nearest_by_linked_clip,
    parquet_that_is_a_link,
    clone_of_links,
    base_of_links,
    base_in_the_hubs_cache,
    single_file_base,
    *map(clip_metric, CLIP_METRICS),
    weight_metric("q16", "prompts"),
    weight_metric("aesthetic", "head"),
    weight_metric("lpips", "features"),
    classifier("classifier"),
    classifier("face_id", detector="owner/name", detector_revision="0" * 40),
    unlearncanvas("styles"),
    unlearncanvas("objects"),
    caption_file,
    segmenter,
]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_one_byte_behind_a_link_is_another_digest(make: Make, tmp_path: Path) -> None:
    plugin, file = make(tmp_path)
    before = plugin.fingerprint()
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    content = bytearray(file.read_bytes())
    content[10 if content[:4] == b"PAR1" else -3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=times)  # of the same size and the same time
    assert plugin.fingerprint() != before


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_what_changed_since_planning_is_not_read_under_the_old_name(
    make: Make, tmp_path: Path
) -> None:
    plugin, file = make(tmp_path)
    kind = type(plugin)
    stored = {"fingerprint": plugin.fingerprint(), "settings": plugin.settings.full()}
    assert planned_plugin(kind, plugin.name, stored).fingerprint() == stored["fingerprint"]
    content = file.read_bytes()
    is_table = content[:4] == b"PAR1"  # which ends with where its parts are
    file.write_bytes(content[:10] + b"x" + content[11:] if is_table else content + b"x\n")
    with pytest.raises(ResurgeError, match="not those that the sweep was planned with"):
        planned_plugin(kind, plugin.name, stored)


opened: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if (
        event == "open"
        and opened is not None
        and isinstance(arguments[0], str | bytes | os.PathLike)
    ):
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_note)  # it cannot be taken away again, so there is one


@contextmanager
def opening(below: Path) -> Iterator[set[str]]:
    """The files in a folder that Python opens inside the block."""
    global opened
    found: set[str] = set()
    opened = []
    try:
        yield found
    finally:
        found |= {path for path in opened if Path(path).is_relative_to(below)}
        opened = None


@pytest.mark.parametrize(
    "make",
    [
        m
        for m in SOURCES
        if m.__name__.startswith(("folder", "mixed", "nearest_of", "base", "clone"))
    ],
    ids=lambda make: make.__name__,
)
def test_what_a_loader_opens_was_hashed(make: Make, tmp_path: Path) -> None:
    plugin, _ = make(tmp_path)
    with opening(tmp_path) as hashed:
        plugin.fingerprint()
    with opening(tmp_path) as read:
        if plugin.kind == "base":
            plugin.load("cpu")  # type: ignore[attr-defined]
        else:
            plugin.examples("star", 32)  # type: ignore[attr-defined]
    assert {path for path in read if os.path.isfile(path)} <= hashed


def test_a_picture_behind_a_link_makes_other_stages(small: str, tmp_path: Path, calls) -> None:
    plugin, file = folder_of_links(tmp_path)
    choice = f"finetune.dataset={{folder: {{path: {plugin.settings.path}}}}}"

    def prepared() -> list[str]:
        stages = make_plan(parse(small, None, (choice,))).stages
        return [stage.digest for stage in stages if stage.kind == "prepare"]

    before = prepared()
    assert prepared() == before
    picture(file, "blue")
    assert prepared() != before


def test_a_link_into_its_own_folder_is_one_clear_error(tmp_path: Path) -> None:
    metadata(tmp_path, "a.png")
    picture(tmp_path / "a.png")
    linked(tmp_path / "inner" / "again", tmp_path)
    with pytest.raises(DataError, match=r"again is a link to a folder that it is in"):
        digest_of(tmp_path)


def test_links_that_lead_nowhere_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    (tmp_path / "b.json").symlink_to("b.json")
    with pytest.raises(DataError, match=r"lead to no file: a -> nowhere, b\.json -> b\.json; put"):
        digest_of(tmp_path, (".json",))
    (tmp_path / "a").unlink()
    assert digest_of(tmp_path, (".txt",)) == digest_of(tmp_path, (".bin",))  # it is not read


@pytest.mark.parametrize("name", ["unet", "unet/diffusion_pytorch_model.safetensors", "tokenizer"])
def test_a_base_with_a_link_that_leads_nowhere(name: str, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "pipeline", tmp_path / "base")
    (tmp_path / "base" / name).rename(tmp_path / "gone")
    (tmp_path / "base" / name).symlink_to("/nowhere")
    with pytest.raises(ResurgeError, match=f"links that lead to no file: {name} -> /nowhere; put"):
        made("base", "diffusers", source=str(tmp_path / "base")).fingerprint()


def test_two_links_to_one_folder_are_no_circle(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png")
    linked(tmp_path / "data" / "one", tmp_path / "pics")
    linked(tmp_path / "data" / "two", tmp_path / "pics")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")  # it copies what is behind links
    assert digest_of(tmp_path / "data") == digest_of(tmp_path / "copy")


def test_what_file_managers_leave_is_no_content(tmp_path: Path) -> None:
    metadata(tmp_path, "a.png")
    picture(tmp_path / "a.png")
    before = digest_of(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").mkdir()  # a folder, whatever its name says
    assert digest_of(tmp_path) == before
    for name in (".git/index", ".cache/huggingface/download/a.png.metadata"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert digest_of(tmp_path) == before
    (tmp_path / ".hidden").write_bytes(b"x")
    assert digest_of(tmp_path) != before


def test_rows_may_write_a_name_of_the_folder_as_they_like(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert digest_of(tmp_path, also=["./a.png", "a.png", "gone.png", "\0"]) == digest_of(tmp_path)


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for path, content in ((file, b"1"), (other, b"2")):
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
    before = digest_of_file(file)
    other.replace(file)
    assert digest_of_file(file) != before


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone: No such file"):
        digest_of_file(tmp_path / "gone")


def test_a_judge_whose_files_changed_is_loaded_again(tmp_path: Path) -> None:
    loaded: list[str] = []

    @kept(2)
    def load(source: Source) -> list[str]:
        loaded.append(source.name)
        return loaded

    (tmp_path / "weights").write_bytes(b"1")
    source = Source(str(tmp_path))
    assert marks_of(tmp_path) == source.marks()
    load(source)
    load(source)
    assert len(loaded) == 1
    (tmp_path / "weights").write_bytes(b"22")
    load(source)
    assert len(loaded) == 2
    let_go()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{oops", r"cannot read .*config\.json: Expecting property name"),
        ("[" * 100_000, r"cannot read .*config\.json: "),
        ("[1]", "must hold a JSON object but holds list"),
        ("\udcff", r"cannot read .*config\.json: 'utf-8' codec"),
        ('{"id2label": {"first": "star"}}', "must name a class for each number"),
        ('{"id2label": [1, 2]}', "must name a class for each number"),
    ],
)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("classifier", ("model",)),
        ("face_id", ("model",)),
        ("unlearncanvas", ("styles", "objects")),
    ],
)
def test_a_broken_config_of_a_metrics_model(
    name: str, settings: tuple[str, ...], content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    base = made("base", "shapes")
    metric = made("metric", name, **dict.fromkeys(settings, str(tmp_path)))
    found = metric.problems(base, "star")  # type: ignore[arg-type]
    assert len(found) == 1
    assert re.search(said, found[0])


PLACES = [
    ("dataset", "folder", "path", {}),
    ("dataset", "parquet", "path", {}),
    ("dataset", "hub", "repository", {}),
    ("dataset", "nearest", "clip", {"of": "related", "by": "clip", "k": 1}),
    ("base", "diffusers", "source", {}),
    ("base", "diffusers", "config", {"source": "x"}),
    ("metric", "clip_score", "model", {}),
    ("metric", "classifier", "model", {}),
    ("metric", "face_id", "model", {}),
    ("metric", "face_id", "detector", {"model": "x"}),
    ("metric", "cmmd", "features", {}),
    ("metric", "unlearncanvas", "styles", {}),
    ("metric", "unlearncanvas", "objects", {}),
    ("metric", "lpips", "features", {}),
    ("metric", "aesthetic", "head", {}),
    ("metric", "q16", "prompts", {}),
    ("material", "caption_sums", "file", {}),
    ("material", "masks", "model", {}),
    ("unlearner", "mace", "general_captions", {}),
    ("unlearner", "mace", "domain_captions", {}),
]


@pytest.mark.parametrize(("kind", "name", "setting", "others"), PLACES)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("~nobody-of-that-name/x", "the home of a user who is not known here"),
        ("x" * 5000, "cannot be looked at: File name too long"),
        ("a/" * 5000, "cannot be looked at: File name too long"),
        ("https://me:hunter22@host/x", r"https://me:\*\*\*@host/x' is a URL, which is not read"),
    ],
)
def test_no_place_ends_in_a_traceback(
    kind: str, name: str, setting: str, others: dict[str, object], text: str, said: str
) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        made(kind, name, **others, **{setting: text})
    shown = [error["msg"] for error in raised.value.errors()]
    assert not any("hunter22" in one or len(one) > 400 for one in shown)
