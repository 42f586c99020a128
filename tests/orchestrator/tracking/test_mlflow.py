import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow.data
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.cli.servers import ui_command
from orchestrator.core.artifacts import Failure
from orchestrator.core.errors import ResurgeError
from orchestrator.store.store import Store
from orchestrator.tracking.background import BackgroundTracker
from orchestrator.tracking.mlflow import Counts, Tracker, sync
from orchestrator.tracking.sweep_runs import SweepView
from tests.orchestrator import synthetic

SOURCE = "name: quickstart\nbase: shapes\n"


class Place:
    """An MLflow on SQLite and a store, both of one test."""

    def __init__(self, root: Path, database: Path | None = None) -> None:
        if database is not None:
            shutil.copy(database, root / "mlflow.db")
        self.uri = f"sqlite:///{root / 'mlflow.db'}"
        self.artifacts = root / "mlartifacts"
        self.store = Store(root / "store")

    def sync(self, plan, source=SOURCE) -> Counts:
        return sync(self.view(plan, source), self.uri, self.artifacts)

    def view(self, plan, source=SOURCE) -> SweepView:
        return SweepView(plan, self.store, source)

    def background(self, plan) -> BackgroundTracker:
        return BackgroundTracker(self.view(plan), self.uri, self.artifacts, every_s=0.01)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self, text="", kind=None):
        experiment = self.client.get_experiment_by_name("quickstart")
        found = self.client.search_runs([experiment.experiment_id], text)
        return [r for r in found if kind is None or r.data.tags["resurge.kind"] == kind]

    def image_steps(self, run):
        names = [Path(f.path).name for f in self.client.list_artifacts(run.info.run_id, "images")]
        return sorted(int(name.split("+")[2]) for name in names if name.endswith(".png"))

    def history(self, run, metric):
        points = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in points)


def small_plan(**axes):
    """1 method × 1 data set × 1 rate × steps 0 and 50 × 1 seed, and controls: 7 runs."""
    few = {"methods": ("esd",), "datasets": ("related",), "rates": (1e-3,), "seeds": (0,)}
    return synthetic.make_plan(**{**few, "steps": (0, 50), **axes})


@pytest.fixture(scope="module")
def plan():
    """2 methods × 1 data set × 2 rates × steps 0 and 50 × 1 seed, and controls: 19 runs."""
    return small_plan(methods=synthetic.METHODS, rates=synthetic.RATES)


@pytest.fixture(scope="module")
def synced(plan, database, tmp_path_factory):
    """A finished sweep, synced once. Tests leave it as it is."""
    place = Place(tmp_path_factory.mktemp("synced"), database)
    synthetic.commit(place.store, plan)
    place.counts = place.sync(plan)
    return place


@pytest.fixture
def place(tmp_path, database):
    return Place(tmp_path, database)


def test_a_run_for_the_sweep_every_trajectory_and_every_trial(synced, plan):
    assert len(synced.runs(kind="sweep")) == 1
    assert len(synced.runs(kind="trajectory")) == 6
    assert len(synced.runs(kind="trial")) == len(plan.trials) == 12
    assert synced.counts.created == 19
    assert {run.info.status for run in synced.runs()} == {"FINISHED"}


def test_all_are_children_of_the_sweep(synced):
    (sweep,) = synced.runs(kind="sweep")
    children = [*synced.runs(kind="trial"), *synced.runs(kind="trajectory")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {sweep.info.run_id}


def test_runs_are_found_by_their_axes(synced):
    trials = synced.runs("params.unlearn.method = 'esd' and tags.resurge.kind = 'trial'")
    assert len(trials) == 4
    assert {run.data.params["unlearn.method"] for run in trials} == {"esd"}
    steps = synced.runs("params.finetune.steps = '50' and params.control = 'false'")
    assert {run.data.params["finetune.learning_rate"] for run in steps} == {"0.0003", "0.001"}


def test_a_trial_has_final_numbers_and_digests(synced, plan):
    (run,) = synced.runs(
        "params.unlearn.method = 'esd' and params.finetune.steps = '50' and "
        "params.finetune.learning_rate = '0.001' and tags.resurge.kind = 'trial'"
    )
    assert run.info.run_name == "esd related lr=1e-3 seed 0 · 50 steps"
    metrics = run.data.metrics
    assert metrics["resurgence"] == pytest.approx(metrics["erased"] - metrics["unlearned"])
    assert metrics["resurgence_low"] <= metrics["resurgence"] <= metrics["resurgence_high"]
    expected = {"retained", "never_known", "control", "recovery", "base", "weight_distance.l2"}
    assert expected <= metrics.keys()
    trial = next(t for t in plan.trials if t.digest == run.data.tags["resurge.trial"])
    assert run.data.tags["resurge.final_model"] == trial.final.model.digest


def test_a_trajectory_has_the_curve_and_the_images(synced):
    run = next(
        r for r in synced.runs(kind="trajectory") if r.info.run_name == "esd related lr=1e-3 seed 0"
    )
    curve = synced.history(run, "erased")
    assert [step for step, _ in curve] == [0, 50]
    assert curve[0][1] < curve[1][1]
    assert synced.history(run, "resurgence")[0] == (0, 0.0)
    assert [step for step, _ in synced.history(run, "loss")] == [50]
    assert len(synced.history(run, "train_loss")) == 50
    assert "finetune.steps" not in run.data.params
    assert synced.image_steps(run) == [0, 50]


def test_runs_name_the_data_that_the_model_was_fine_tuned_on(synced, plan):
    by_steps = {"0": [], "50": ["related"]}
    for run in [*synced.runs(kind="trial"), *synced.runs(kind="trajectory")]:
        names = [used.dataset.name for used in run.inputs.dataset_inputs]
        assert names == by_steps[run.data.params.get("finetune.steps", "50")]
    [used] = synced.runs(kind="trajectory")[0].inputs.dataset_inputs
    [prepared] = [stage for stage in plan.stages if stage.kind == "prepare"]
    assert used.dataset.digest == prepared.key
    assert used.tags[0].value == "training"
    expected = {"num_rows": 256, "size_px": 32.0, "settings": {"size": 256}}
    assert json.loads(used.dataset.profile) == expected
    assert Path(mlflow.data.get_source(used).load()).read_bytes() == b"pictures"


def test_the_image_grid_is_large_enough_to_see(synced, tmp_path):
    run = synced.runs(kind="trajectory")[0]
    files = synced.client.list_artifacts(run.info.run_id, "images")
    path = next(f.path for f in files if f.path.endswith(".png"))
    local = synced.client.download_artifacts(run.info.run_id, path, str(tmp_path))
    assert Image.open(local).size == (4 * 100 + 4, 6 * 100 + 4)


def test_the_sweep_has_its_file_plan_environment_and_commit(synced, tmp_path):
    (run,) = synced.runs(kind="sweep")
    assert run.data.tags["mlflow.source.git.commit"] == synthetic.GIT_SHA
    names = {f.path for f in synced.client.list_artifacts(run.info.run_id)}
    assert names == {"sweep.yaml", "plan.json", "environment.json"}
    local = synced.client.download_artifacts(run.info.run_id, "sweep.yaml", str(tmp_path))
    assert Path(local).read_text() == SOURCE


def test_syncing_again_writes_nothing(synced, plan):
    assert synced.sync(plan) == Counts(created=0, updated=0, unchanged=19)
    assert len(synced.runs()) == 19


def test_what_was_cut_off_is_completed_without_duplicates(synced, plan):
    """As after a kill between two writes: the mark is missing, everything else may be there."""
    run = synced.runs(kind="trajectory")[0]
    before = synced.history(run, "erased")
    synced.client.delete_tag(run.info.run_id, "resurge.synced")
    synced.client.update_run(run.info.run_id, status="RUNNING")
    assert synced.sync(plan) == Counts(created=0, updated=1, unchanged=18)
    assert synced.history(run, "erased") == before
    assert synced.image_steps(run) == [0, 50]
    assert synced.client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_sweep_that_is_under_way_fills_in(place):
    plan = small_plan()
    first = next(t for t in plan.trials if t.trial.params["finetune.steps"] == 50)
    synthetic.commit(place.store, plan, {s.digest for s in first.unlearned.stages()})
    place.sync(plan)
    assert {run.info.status for run in place.runs(kind="trajectory")} == {"RUNNING"}
    synthetic.commit(place.store, plan)
    place.sync(plan)
    assert {run.info.status for run in place.runs()} == {"FINISHED"}
    for run in place.runs("params.control = 'false'", kind="trajectory"):
        assert [step for step, _ in place.history(run, "erased")] == [0, 50]
        assert place.image_steps(run) == [0, 50]


def test_a_new_step_count_extends_the_trajectories(place):
    few = small_plan()
    synthetic.commit(place.store, few)
    place.sync(few)
    trajectories = {run.info.run_id for run in place.runs(kind="trajectory")}
    many = small_plan(steps=(0, 50, 100))
    synthetic.commit(place.store, many)
    place.sync(many)
    assert {run.info.run_id for run in place.runs(kind="trajectory")} == trajectories
    for run in place.runs(kind="trajectory"):
        assert [step for step, _ in place.history(run, "loss")] == [50, 100]


def test_a_failed_trial_is_marked(place):
    plan = small_plan()
    trial = next(t for t in plan.trials if t.trial.params["finetune.steps"] == 50)
    lost = {s.digest for s in (trial.final.sample, *trial.final.scores)}
    synthetic.commit(place.store, plan, {s.digest for s in plan.stages} - lost)
    place.store.put_failure(trial.final.sample, Failure("out of memory", None))
    place.sync(plan)
    failed = place.runs("attributes.status = 'FAILED'", kind="trial")
    assert [run.data.tags["resurge.trial"] for run in failed] == [trial.digest]


def test_an_incremental_sync_asks_mlflow_for_nothing(place):
    plan = small_plan()
    synthetic.commit(place.store, plan)
    tracker = Tracker(place.uri, place.artifacts)
    view = place.view(plan)
    tracker.sync(view)
    tracker.__dict__["_client"] = None  # whoever asks now, fails
    assert tracker.sync(view).unchanged == 7


def test_the_background_tracker_follows_the_sweep(place):
    plan = small_plan(methods=("uce",))
    tracker = place.background(plan)
    for stage in plan.stages:
        if stage.kind != "base":
            synthetic.commit_stage(place.store, stage)
            tracker.notify()
    assert tracker.close(timeout_s=120)
    assert tracker.last_error is None
    assert {run.info.status for run in place.runs()} == {"FINISHED"}
    assert place.sync(plan).unchanged == len(place.runs())


def test_mlflow_being_away_stops_nothing(place, plan, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    tracker = BackgroundTracker(place.view(plan), uri, every_s=0.01)
    tracker.notify()
    assert not tracker.close(timeout_s=60)
    assert tracker.last_error


def test_a_sync_to_an_mlflow_that_is_away_says_so(place, plan, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResurgeError, match="cannot be written"):
        sync(place.view(plan), f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_deleted_experiment_is_named(place, plan):
    place.sync(plan)
    place.client.delete_experiment(place.client.get_experiment_by_name("quickstart").experiment_id)
    with pytest.raises(ResurgeError, match="is deleted; restore it"):
        place.sync(plan)


def test_importing_tracking_loads_no_mlflow():
    code = "import sys, orchestrator.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_mlflow_is_kept_quiet(synced):
    assert logging.getLogger("mlflow").level == logging.WARNING


def test_the_ui_is_on_loopback(place):
    command, settings = ui_command(place.uri, place.artifacts, 5001)
    assert command[:2] == ["mlflow", "server"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert settings["MLFLOW_BACKEND_STORE_URI"] == place.uri
    assert place.uri not in " ".join(command), "any user can read a command"
    with pytest.raises(ResurgeError, match="open https://mlflow"):
        ui_command("https://mlflow.example.org", place.artifacts, 5001)


@pytest.mark.integration
def test_a_server_shows_what_was_synced_and_takes_syncs(place):
    """The UI's server on the database of one sweep; a second sweep is synced through it."""
    plan = small_plan()
    synthetic.commit(place.store, plan)
    place.sync(plan)
    address = f"http://127.0.0.1:{free_port()}"
    with serving(place, address):
        client = MlflowClient(address)
        (experiment,) = [e for e in client.search_experiments() if e.name == "quickstart"]
        runs = client.search_runs([experiment.experiment_id], "tags.resurge.kind = 'sweep'")
        query = f"run_uuid={runs[0].info.run_id}&path=sweep.yaml"
        with urllib.request.urlopen(f"{address}/get-artifact?{query}") as answer:
            assert answer.read().decode() == SOURCE
        for headers in ({"Host": "evil.example"}, {"Host": "10.evil.example"}):
            assert refused(f"{address}/api/2.0/mlflow/experiments/search", headers) == 403
        assert refused(f"{address}/api/2.0/mlflow/runs/create", {"Origin": "http://evil.example"})
        again = small_plan(name="again")
        assert sync(place.view(again), address).created == 7
        assert sync(place.view(again), address).unchanged == 7


def refused(url: str, headers: dict[str, str]) -> int:
    """The status with which a change is refused."""
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, b"{}", sent, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert b"rebinding" in caught.value.read() or caught.value.code == 403
    return caught.value.code


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(place: Place, address: str):
    """Started among files of the user's, of which the server imports none."""
    command, settings = ui_command(place.uri, place.artifacts, int(address.rpartition(":")[2]))
    here = place.artifacts.parent / "here"
    here.mkdir()
    (here / "mlflow.py").write_text("raise ImportError('the user has one as well')")
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        start_new_session=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", **settings},
        cwd=here,
    ) as server:
        try:
            wait_for(f"{address}/health", server)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.4)
    raise AssertionError("the server does not answer")
