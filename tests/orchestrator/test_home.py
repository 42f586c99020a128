"""Where things live: who has the word on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.home import NEEDED_BYTES, Home
from orchestrator.sweepfile.load import parse

SWEEP = """
name: mine
concept: star
edits: [{unlearn: esd}, {finetune: {dataset: related}}]
evaluate: {metrics: [concept_accuracy]}
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "STORE", "MLFLOW", "STUDIES"):
        monkeypatch.delenv(f"RESURGE_{name}", raising=False)


def test_everything_is_below_the_home_unless_it_is_said_to_be_elsewhere() -> None:
    home, sweep = Home(Path("/home")), parse(SWEEP)
    assert home.store_location(sweep) == "/home/store"
    assert home.mlflow_uri(sweep) == "sqlite:////home/mlflow.db"
    assert home.studies_uri(sweep) == "sqlite:////home/studies.db"


def test_the_sweep_stands_before_the_cluster_and_that_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESURGE_STORE", "/environment")
    monkeypatch.setenv("RESURGE_MLFLOW", "http://environment")
    monkeypatch.setenv("RESURGE_STUDIES", "sqlite:////environment.db")
    home = Home(Path("/home"))
    far = Home(Path("/home"), "lab", "/lab", "http://lab", "sqlite:////lab.db")
    sweep, own = parse(SWEEP), parse(f"{SWEEP}store: /own\nmlflow: http://own\n")
    places = [
        (where.store_location(of), where.mlflow_uri(of), where.studies_uri(of))
        for where, of in ((home, sweep), (far, sweep), (far, own))
    ]
    assert places == [
        ("/environment", "http://environment", "sqlite:////environment.db"),
        ("/lab", "http://lab", "sqlite:////lab.db"),
        ("/own", "http://own", "sqlite:////lab.db"),
    ]


def test_a_cluster_has_no_local_state() -> None:
    far, sweep = Home(Path("/home"), "lab"), parse(SWEEP)
    for setting, look in (
        ("store", far.store_location),
        ("mlflow", far.mlflow_uri),
        ("studies", far.studies_uri),
    ):
        with pytest.raises(ResurgeError, match=f"set `{setting}:` .* or RESURGE_{setting.upper()}"):
            look(sweep)


def home_that_is(what: str, folder: Path) -> Path:
    """The path of a home into which nothing can be written; skips where root may write."""
    if what == "full":
        place = folder / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place])
        if mounted.returncode or shutil.disk_usage(place).total > NEEDED_BYTES:
            pytest.skip("no file system may be mounted here")
        return place
    if what == "read-only":
        (folder / "closed").mkdir(mode=0o555)
        if os.access(folder / "closed", os.W_OK):
            pytest.skip("who runs this may write everywhere")
        return folder / "closed" / "home"
    (folder / "file").write_text("x")
    return folder / "file" / "home" if what == "below a file" else folder / "file"


@pytest.mark.parametrize("what", ["a file", "below a file", "read-only", "full"])
def test_a_home_that_takes_nothing_is_refused_at_the_start(what: str, tmp_path: Path) -> None:
    root = home_that_is(what, tmp_path)
    try:
        with pytest.raises(ResurgeError, match=r"cannot write into the home .*: .*--home or"):
            Home(root).check_writable()
    finally:
        if what == "full":
            subprocess.run(["umount", root], check=True)


def test_a_home_that_is_fine_is_left_as_it_is(tmp_path: Path) -> None:
    Home(tmp_path / "a" / "home").check_writable()
    assert list((tmp_path / "a" / "home").iterdir()) == []
