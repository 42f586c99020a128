"""MLflow's file: damaged, in use, or at another place than it was."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.connection import tags_of
from orchestrator.tracking.database import TrackingError, holds, relocate
from orchestrator.tracking.inputs import DataInput
from orchestrator.tracking.mlflow import Counts, sync
from orchestrator.tracking.run import MetricPoint
from tests.orchestrator.tracking.test_tracker import TRIAL, Place


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)


def a_damaged_one(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20_000)


def one_cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5_000)


def another_programs(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE photographs (id INTEGER)")


def a_later_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'cafe'")


def one_without_its_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE runs")
        database.execute("UPDATE alembic_version SET version_num = 'cafe'")


DAMAGE = [
    a_folder,
    a_text,
    a_damaged_one,
    one_cut_short,
    another_programs,
    a_later_version,
    one_without_its_tables,
]


@pytest.fixture
def place(tmp_path: Path, database: Path) -> Place:
    root = tmp_path / "old"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    return Place(root)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_use_is_one_sentence(place: Place, damage: Callable[[Path], None]) -> None:
    path = place.root / "mlflow.db"
    damage(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(TrackingError, match=r"mlflow\.db") as caught:
        place.sync(TRIAL)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrackingError, match=r"mlflow\.db") as caught:
        tags_of("0" * 32, place.uri)
    assert "\n" not in str(caught.value)
    assert not path.is_file() or path.read_bytes() == before
    assert not holds(place.uri, "paintings", "resurge.synced", 1)


def test_one_in_use_is_one_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.database.BUSY_TIMEOUT_S", 0.01)
    other = sqlite3.connect(place.root / "mlflow.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError, match="locked; another program writes to it"):
        place.sync(TRIAL)
    other.rollback()
    assert place.sync(TRIAL).created == 2


def test_it_holds_what_was_written_to_it(place: Place) -> None:
    def has(count: int) -> bool:
        return holds(place.uri, "paintings", "resurge.synced", count)

    assert not has(1)
    place.sync(TRIAL)
    assert has(2) and not has(3)
    experiment = place.client.get_experiment_by_name("paintings")
    assert experiment is not None
    place.client.delete_run(place.runs()["a"].info.run_id)
    assert has(1) and not has(2)
    place.client.delete_experiment(experiment.experiment_id)
    assert not has(1)
    (place.root / "mlflow.db").unlink()
    assert not has(0)
    assert not holds("http://127.0.0.1:5000", "paintings", "resurge.synced", 0)


def test_tags_are_those_of_a_run_that_is_there(place: Place) -> None:
    place.sync(TRIAL)
    found = tags_of(place.runs()["a"].info.run_id, place.uri)
    assert found is not None and found["resurge.key"] == "a"
    assert tags_of("0" * 32, place.uri) is None
    nowhere = Place(place.root / "nowhere")
    assert tags_of("0" * 32, nowhere.uri) is None
    assert not nowhere.root.exists()


def with_a_note(place: Place, text: str) -> Counts:
    source = json.dumps({"uri": f"{place.root}/store/objects/ab"})
    data = DataInput("related", "0" * 16, "local", source, "{}", "{}")
    return place.sync(replace(TRIAL, texts={"note.txt": text}, data=(data,)))


def note(place: Place) -> str:
    run = place.runs()["a"]
    return Path(place.client.download_artifacts(run.info.run_id, "note.txt")).read_text()


def source(place: Place) -> str:
    found: Any = place.runs()["a"].inputs.dataset_inputs[0].dataset
    return str(json.loads(found.source)["uri"])


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["new", "a new é 'place' %20", "old2"])
def test_a_home_that_was_moved_takes_its_artifacts_along(place: Place, name: str) -> None:
    with_a_note(place, "first")
    new = Place(place.root.rename(place.root.parent / name))
    assert with_a_note(new, "first") == Counts(unchanged=2)
    assert note(new) == "first"
    assert source(new) == f"{new.root}/store/objects/ab"
    with_a_note(new, "second")
    assert note(new) == "second"
    assert not place.root.exists()


def test_a_copy_writes_into_itself(place: Place) -> None:
    with_a_note(place, "first")
    before = files(place.root)
    new = Place(place.root.parent / "copy")
    shutil.copytree(place.root, new.root)
    with_a_note(new, "second")
    points = (MetricPoint("loss", 1.0, 0, 1),)
    assert new.sync(TRIAL, replace(TRIAL, key="b", texts={"b.txt": "b"}, points=points)).created
    assert files(place.root) == before
    assert (note(new), note(place)) == ("second", "first")


def test_a_database_that_is_not_in_the_home_stays(place: Place, tmp_path: Path) -> None:
    with_a_note(place, "first")
    before = files(place.root)
    relocate(place.uri, tmp_path / "other" / "mlartifacts")
    assert files(place.root) == before


def test_a_home_seen_through_a_link_was_not_moved(place: Place) -> None:
    with_a_note(place, "first")
    link = place.root.parent / "link"
    link.symlink_to(place.root)
    before = files(place.root)
    relocate(f"sqlite:///{link / 'mlflow.db'}", link / "mlartifacts")
    assert files(place.root) == before


def test_another_kind_of_database_needs_its_driver(place: Place) -> None:
    with pytest.raises(TrackingError, match="cannot be written") as caught:
        sync(place.view(TRIAL), "mysql+nodriver://host/mlflow", place.artifacts)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_away_is_one_sentence(place: Place) -> None:
    with pytest.raises(TrackingError, match="cannot be written") as caught:
        sync(place.view(TRIAL), "http://127.0.0.1:9", place.artifacts)
    assert "\n" not in str(caught.value)


def test_the_client_of_a_moved_home_needs_no_help_of_ours(place: Place) -> None:
    """After it was opened once, a notebook reads the new place with MLflow alone."""
    with_a_note(place, "first")
    new = Place(place.root.rename(place.root.parent / "new"))
    relocate(new.uri, new.artifacts)
    runs = MlflowClient(new.uri).search_runs(["1"], "tags.resurge.key = 'a'")
    assert runs[0].info.artifact_uri.startswith(new.artifacts.as_uri())
