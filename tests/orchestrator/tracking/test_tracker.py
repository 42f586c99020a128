"""What MLflow does not take of one run stops no other; what has left the sweep is out of sight."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.utils import validation

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import sqlite_url
from orchestrator.store.store import Store
from orchestrator.tracking.background import BackgroundTracker
from orchestrator.tracking.connection import pages
from orchestrator.tracking.database import TrackingError
from orchestrator.tracking.mlflow import Counts, Tracker, sync
from orchestrator.tracking.run import MetricPoint, Run

NAMES = ("retained.Claude Monet (1840-1926)", "retained.O'Keeffe", "retained.Keeffe", "retained./")


@dataclass
class Shown:
    """Runs as they are said to be."""

    store: Store
    shown: list[Run]
    name: str = "paintings"
    kept: set[str] = field(default_factory=set)

    def runs(self, only_new: bool = False) -> Iterator[Run]:
        yield from self.shown

    def holds(self, key: str) -> bool:
        return key in self.kept or any(run.key == key for run in self.shown)


def run_of(key: str, **values: Any) -> Run:
    parent = None if key == "sweep" else "sweep"
    kind: Any = "sweep" if key == "sweep" else "trial"
    given = {"name": key, "status": "FINISHED", "start_ms": 1, "end_ms": 2, "parent": parent}
    return Run(kind=kind, key=key, **{**given, **values})


SWEEP, TRIAL = run_of("sweep"), run_of("a", params={"seed": "0"})


@dataclass
class Place:
    """An MLflow on SQLite."""

    root: Path

    @property
    def uri(self) -> str:
        return sqlite_url(self.root / "mlflow.db")

    @property
    def artifacts(self) -> Path:
        return self.root / "mlartifacts"

    def view(self, *runs: Run, **values: Any) -> Shown:
        return Shown(Store(self.root / "store"), [SWEEP, *runs], **values)

    def sync(self, *runs: Run, **values: Any) -> Counts:
        return sync(self.view(*runs, **values), self.uri, self.artifacts)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self, view: int = ViewType.ACTIVE_ONLY, name: str = "paintings") -> dict[str, Any]:
        experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        found = self.client.search_runs([experiment.experiment_id], run_view_type=view)
        assert len({run.data.tags["resurge.key"] for run in found}) == len(found)
        return {run.data.tags["resurge.key"]: run for run in found}


@pytest.fixture
def place(tmp_path: Path, database: Path) -> Place:
    shutil.copy(database, tmp_path / "mlflow.db")
    return Place(tmp_path)


def test_ordinary_names_are_shown(place: Place) -> None:
    points = tuple(MetricPoint(name, at / 4, 0, 1) for at, name in enumerate(NAMES))
    values = {name: "x" * 7_000 for name in NAMES}
    text = " ".join(NAMES) * 20
    trial = replace(TRIAL, name=text, points=points, params=values, tags=values)
    assert place.sync(trial).created == 2
    run = place.runs()["a"]
    assert run.info.status == "FINISHED"
    assert sorted(run.data.metrics.values()) == [0, 0.25, 0.5, 0.75]
    assert "retained.Keeffe" in run.data.metrics
    assert len(run.data.params) == len(NAMES)
    assert all("cut, 7000 characters" in value for value in run.data.params.values())
    assert len(run.info.run_name) == 250
    assert place.sync(trial) == Counts(unchanged=2)


def test_infinity_is_said_and_not_a_large_number(place: Place) -> None:
    points = [MetricPoint("loss", value, at, 1) for at, value in enumerate((1.0, math.inf))]
    place.sync(replace(TRIAL, points=(*points, MetricPoint("gap", -math.inf, 0, 1))))
    run = place.runs()["a"]
    assert run.data.metrics == {"loss": 1.0}
    assert run.data.tags["resurge.infinite"] == "loss, gap"


def test_what_mlflow_refuses_of_one_run_stops_nothing_else(place: Place) -> None:
    """A time before 1970 stands for what we do not know that MLflow refuses."""
    bad = replace(TRIAL, name="bad", points=(MetricPoint("loss", 1.0, 0, -5),))
    good = run_of("b", points=(MetricPoint("loss", 0.5, 0, 1),))
    for _ in range(2):
        with pytest.raises(TrackingError, match=r"not take all of the run 'bad': .*timestamp"):
            place.sync(bad, good)
    runs = place.runs()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["b"].data.metrics == {"loss": 0.5}
    assert "resurge.synced" not in runs["a"].data.tags
    assert place.sync(replace(bad, points=()), good) == Counts(updated=1, unchanged=2)


def test_the_background_writer_says_what_was_refused(place: Place) -> None:
    bad = replace(TRIAL, name="bad", points=(MetricPoint("loss", 1.0, 0, -5),))
    view = place.view(bad, run_of("b"))
    tracker = BackgroundTracker(view, place.uri, place.artifacts, every_s=0.01)
    assert not tracker.close(timeout_s=60)
    assert "not take all of the run 'bad'" in str(tracker.last_error)
    assert place.runs().keys() == {"sweep", "a", "b"}


def test_what_leaves_the_sweep_is_put_aside_and_comes_back(place: Place) -> None:
    begun, done = run_of("a", status="RUNNING"), run_of("b")
    place.sync(begun, done)
    ids = {key: run.info.run_id for key, run in place.runs().items()}
    assert place.sync(run_of("c")) == Counts(created=1, unchanged=1, left=2)
    assert place.runs().keys() == {"sweep", "c"}
    aside = place.runs(ViewType.DELETED_ONLY)
    assert {run.data.tags["resurge.left_sweep"] for run in aside.values()} == {"true"}
    assert {key: run.info.status for key, run in aside.items()} == {"a": "KILLED", "b": "FINISHED"}
    assert place.sync(run_of("c")) == Counts(unchanged=2)
    assert place.sync(replace(begun, status="FINISHED"), done).left == 1
    back = place.runs()
    assert {key: run.info.run_id for key, run in back.items()} == ids
    assert {run.info.status for run in back.values()} == {"FINISHED"}
    assert all("resurge.left_sweep" not in run.data.tags for run in back.values())


def test_what_is_not_shown_yet_has_not_left(place: Place) -> None:
    place.sync(TRIAL)
    assert place.sync(kept={"a"}) == Counts(unchanged=1)
    assert place.runs().keys() == {"sweep", "a"}


def test_a_run_goes_by_its_new_name(place: Place) -> None:
    place.sync(TRIAL)
    place.sync(replace(TRIAL, name="a · seed 0"))
    assert place.runs()["a"].info.run_name == "a · seed 0"


def test_a_parent_that_somebody_deleted_is_made_again(place: Place) -> None:
    place.sync(TRIAL)
    gone = place.runs()["sweep"].info.run_id
    place.client.delete_run(gone)
    assert place.sync(TRIAL) == Counts(created=1, updated=1)
    runs = place.runs()
    assert runs["sweep"].info.run_id != gone
    assert runs["a"].data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
    assert place.sync(TRIAL) == Counts(unchanged=2)


def test_a_run_that_somebody_deletes_meanwhile_is_made_again(place: Place) -> None:
    tracker = Tracker(place.uri, place.artifacts)
    tracker.sync(place.view(TRIAL))
    place.client.delete_run(place.runs()["a"].info.run_id)
    now = place.view(replace(TRIAL, tags={"state": "done"}))
    assert "active" in str(tracker.sync(now).problem)
    assert tracker.sync(now) == Counts(created=1, unchanged=1)
    assert place.runs()["a"].data.tags["state"] == "done"


def test_the_command_that_restores_an_experiment_works(place: Place, tmp_path: Path) -> None:
    odd = Place(tmp_path / "it's a $HOME")
    odd.root.mkdir()
    shutil.copy(place.root / "mlflow.db", odd.root)
    odd.sync(TRIAL)
    found = odd.client.get_experiment_by_name("paintings")
    assert found is not None
    odd.client.delete_experiment(found.experiment_id)
    with pytest.raises(ResurgeError, match="is deleted; restore it") as caught:
        odd.sync(TRIAL)
    text = str(caught.value)
    command = text[text.index("restore it (") + len("restore it (") : text.index(") or rename")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run(command, shell=True, check=True, env=clean, cwd=tmp_path, capture_output=True)
    assert odd.sync(TRIAL) == Counts(unchanged=2)


def test_a_sweep_called_default_has_an_experiment_of_its_own(place: Place, tmp_path: Path) -> None:
    place.sync(replace(TRIAL, texts={"note.txt": "hello"}), name="Default")
    run = place.runs(name="Default (sweep)")["a"]
    assert run.info.artifact_uri.startswith(place.artifacts.as_uri())
    assert Path(place.client.download_artifacts(run.info.run_id, "note.txt")).read_text() == "hello"
    default = place.client.get_experiment_by_name("Default")
    assert default is not None and not place.client.search_runs([default.experiment_id])


def test_batches_are_as_large_as_mlflow_takes_them() -> None:
    items = [
        *(Metric(f"m{at}", 0.5, 1, at) for at in range(2_345)),
        *(Param(f"p{at}", "梵" * 6_000) for at in range(234)),
        *(RunTag(f"t{at}", "x" * 6_000) for at in range(234)),
    ]
    batches = list(pages(items))
    assert [item for batch in batches for item in batch] == items
    for page in batches:
        kinds = [[i for i in page if isinstance(i, kind)] for kind in (Metric, Param, RunTag)]
        validation._validate_batch_log_limits(*kinds)
        validation._validate_batch_log_api_req(json.dumps([dict(item) for item in page]))
    assert len(list(pages(items[:500]))) == 1


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that takes everything but the runs' batches, which are too large for
    the proxy before it.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(
                {"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}}
            )

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("log-batch"):
                self.send_response(413)
                self.end_headers()
                self.wfile.write(b"<html>413 Request Entity Too Large</html>")
                return
            ended.append(self.path.rpartition("/")[2])
            info = {"run_id": f"{len(ended):032x}", "run_name": "x", "status": "RUNNING"}
            self.send({"run": {"info": info, "data": {}}, "run_info": info})

        def send(self, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    ended: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    assert ended.count("create") == ended.count("update") == 3


def test_a_proxy_that_refuses_batches_blocks_no_runs_end(place: Place, refusing: str) -> None:
    view = place.view(TRIAL, run_of("b"))
    with pytest.raises(TrackingError, match=r"run 'sweep' \(and of 2 more\): .*413"):
        sync(view, refusing)
