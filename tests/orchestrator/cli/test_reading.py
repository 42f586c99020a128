"""Finished results are read from the store alone: without plug-ins, from any folder, whatever
became of what the sweep was run on.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli import common, main
from orchestrator.home import Home
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.job import Job, open_job, open_results
from orchestrator.run.run import new_executor, new_leases, new_scheduler, view_of
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import load

SWEEP = """
name: mine
base: tiny
concept: star
edits:
  - unlearn: nudge
  - finetune: {dataset: {folder: {path: pics}}, steps: [1, 2], batch_size: 2}
evaluate: {metrics: [brightness], images_per_prompt: 1}
resources: {executor: inline}
"""
READING = ("results", "status", "export", "list sweeps", "results --json", "store du")


def picture(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(folder / f"{number}.png")
    with (folder / "metadata.jsonl").open("a") as rows:
        rows.write(json.dumps({"file_name": f"{number}.png", "text": "a dot"}) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a sweep, its pictures, and a home in which it was run."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("RESURGE_PLUGINS", str(Path(__file__).parents[2] / "recording"))
        for number in range(3):
            picture(Path("pics"), number)
        Path("mine.yaml").write_text(SWEEP)
        job = Job(load(Path("mine.yaml")), Home(place / "home"))
        job.remember()
        with new_executor(job.sweep.resources, Console(file=io.StringIO())) as executor:
            scheduler = new_scheduler(job, set(), executor, lambda event: None, new_leases(job))
            scheduler.add(make_tasks(job.plan, set(), ()))
            assert scheduler.run().ok
        yield place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: object) -> Path:
    """A copy of it, and the working directory."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def say(place: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What a command prints to stdout and to stderr; it must succeed."""
    printed, warned = io.StringIO(), io.StringIO()
    for module in (common, main):
        monkeypatch.setattr(module, "out", Console(file=printed, width=160, highlight=False))
        monkeypatch.setattr(module, "err", Console(file=warned, width=160, highlight=False))
    from orchestrator.cli import catalog, store

    for module in (catalog, store):
        monkeypatch.setattr(module, "out", common.out)
    words = command.split()
    name = [] if words[0] in ("list", "store") else ["mine"]
    result = CliRunner().invoke(main.app, [*words, *name, "--home", str(place / "home")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return printed.getvalue() + result.stdout, warned.getvalue()


def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (place / "other").mkdir()
    monkeypatch.chdir(place / "other")
    return "cannot be compared with what it was then"


def moved(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (place / "pics").rename(place / "old pics")
    return "dataset 'folder' (path: pics) cannot be compared with what it was then"


def without_plugins(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("RESURGE_PLUGINS")
    return ""


def one_picture_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    picture(place / "pics", 5)
    return "dataset 'folder' (path: pics) has changed since"


def untouched(place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return ""


@pytest.mark.parametrize("change", [untouched, elsewhere, moved, without_plugins, one_picture_more])
def test_whatever_became_of_the_inputs_results_are_what_was_run(
    change: Callable[[Path, pytest.MonkeyPatch], str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {command: say(place, command, monkeypatch)[0] for command in READING}
    runs = list(view_of(open_results("mine", Home(place / "home"))).runs())
    assert "trials 4/4 done · stages 18/18" in before["status"]
    assert "finished" in before["list sweeps"]
    warning = change(place, monkeypatch)
    for command in READING:
        printed, warned = say(place, command, monkeypatch)
        assert printed == before[command]
        if command not in ("list sweeps", "store du"):
            assert warned.count("warning: ") == bool(warning)
            assert warning in warned
    assert list(view_of(open_results("mine", Home(place / "home"))).runs()) == runs


def test_running_again_plans_anew_and_is_remembered(place: Path) -> None:
    """What is read is what was run last, and not what was run first."""
    store = Store(place / "home" / "store")
    first = store.sweep("mine")
    picture(place / "pics", 5)
    job = open_job("mine", (), Home(place / "home"))
    assert len(job.done()) < len(job.plan.stages)
    job.remember()
    again = store.sweep("mine")
    assert again is not None and first is not None
    assert again["plan"] != first["plan"]
    # The same once more writes nothing.
    path = place / "home" / "store" / "sweeps" / "mine.json"
    os.utime(path, (1, 1))
    open_job("mine", (), Home(place / "home")).remember()
    assert path.stat().st_mtime == 1
