"""Studies whose place is damaged, in use or something else: one sentence, never a driver's own."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import file_of, sqlite_url
from orchestrator.study.lock import StudyLock
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import open_studies, read_studies
from orchestrator.study.study import Study
from orchestrator.sweepfile.load import parse

FOUND = """
name: found
base: shapes
concept: star
edits: [{unlearn: esd}, {finetune: {dataset: related}}]
evaluate: {metrics: [concept_accuracy]}
search: {maximize: resurgence, space: {finetune.steps: [25, 50, 75]}}
"""
pytestmark = pytest.mark.filterwarnings("ignore:.* experimental")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("these are no studies\n" * 100)


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 3 + 1)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20_000)


def a_later_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'cafe'")


def without_its_trials(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE trials")


@pytest.fixture(scope="module")
def planner() -> PointPlanner:
    return PointPlanner(parse(FOUND))


@pytest.fixture(scope="module")
def made(planner: PointPlanner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study with a trial, of each kind."""
    folder = tmp_path_factory.mktemp("studies")
    paths = {"sqlite": folder / "studies.db", "journal": folder / "studies.log"}
    for kind, path in paths.items():
        ask(begin(planner, url_of(kind, path)))
    return paths


def url_of(kind: str, path: Path) -> str:
    return sqlite_url(path) if kind == "sqlite" else f"journal://{path}"


def begin(planner: PointPlanner, url: str) -> Study:
    ((_, study),) = open_studies(planner, url)
    return study


def ask(study: Study) -> None:
    trial = study.ask()
    assert trial is not None
    study.tell(trial.number, [0.5], {}, {})


@pytest.fixture
def url(made: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> str:
    kind: str = getattr(request, "param", "sqlite")
    return url_of(kind, Path(shutil.copy(made[kind], tmp_path)))


def refused(work: Callable[[], object]) -> None:
    with pytest.raises(ResurgeError, match=r"the studies at .* cannot be used: .+") as caught:
        work()
    assert "\n" not in str(caught.value)


def refused_after(damage: Callable[[Path], None], planner: PointPlanner, url: str) -> None:
    path = file_of(url)
    assert path is not None
    damage(path)
    refused(lambda: read_studies(planner, url))
    refused(lambda: open_studies(planner, url))


@pytest.mark.parametrize("url", ["sqlite", "journal"], indirect=True)
@pytest.mark.parametrize("damage", [a_folder, a_text])
def test_what_is_no_use_is_one_sentence(
    planner: PointPlanner, url: str, damage: Callable[[Path], None]
) -> None:
    refused_after(damage, planner, url)


@pytest.mark.parametrize("damage", [cut_short, overwritten, a_later_version])
def test_a_damaged_database_is_one_sentence(
    planner: PointPlanner, url: str, damage: Callable[[Path], None]
) -> None:
    refused_after(damage, planner, url)


def test_one_that_is_damaged_meanwhile_is_one_sentence(planner: PointPlanner, url: str) -> None:
    study, path = begin(planner, url), file_of(url)
    assert path is not None
    lock = StudyLock(url, [study.name])
    assert not lock.claim()
    without_its_trials(path)
    refused(study.ask)
    refused(study.adopt)
    refused(lambda: study.tell(0, [0.5], {}, {}))
    refused(lambda: study.tell_failed(0, "gone"))


def test_one_in_use_is_one_sentence(
    planner: PointPlanner, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.study.storage.BUSY_TIMEOUT_S", 0.01)
    study, path = begin(planner, url), file_of(url)
    assert path is not None
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    refused(study.ask)
    refused(lambda: read_studies(planner, url))
    other.rollback()
    ask(study)
