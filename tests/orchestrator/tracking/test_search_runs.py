"""A search in a real MLflow: its studies, trials and confirmed settings, and the worst case."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console

from orchestrator.home import Home
from orchestrator.run.job import Job
from orchestrator.run.run import is_synced, sync_job
from orchestrator.search import search
from orchestrator.store.store import Store
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import open_studies, read_studies
from orchestrator.study.study import Study
from orchestrator.study.tried import Tried, best, counted
from orchestrator.study.worst_case import confirmed
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.mlflow import Counts, Tracker
from orchestrator.tracking.search_runs import StudyView
from tests.orchestrator import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:.* experimental")

FOUND = """
name: found
base: shapes
concept: star
edits: [{unlearn: [esd, uce]}, {finetune: {}}]
evaluate: {metrics: [concept_accuracy]}
search:
  maximize: resurgence
  subject_to: {retained_accuracy: ">= 0.5"}
  for_each: unlearn.method
  space:
    finetune.dataset: [related, unrelated]
    finetune.learning_rate: [3.0e-4, 1.0e-3]
    finetune.steps: {int: [25, 75], step: 25}
  sampler: random
  pruner: median
  trials: 8
  confirm: {top: 2, seeds: 2}
"""
PRUNED, FAILED = 2, 3
"""How many trials a study has told before the one that it prunes, and the one that fails."""


class Place:
    """A search that is told by hand, with made-up records, and an MLflow on SQLite."""

    def __init__(self, root: Path, database: Path) -> None:
        shutil.copy(database, root / "mlflow.db")
        self.home = Home(root)
        self.uri = self.home.mlflow_uri()
        self.store = Store(self.home.store_location())
        self.text = FOUND

    @property
    def sweep(self) -> Sweep:
        return parse(self.text)

    def search(self, trials: int) -> None:
        self.text = FOUND.replace("trials: 8", f"trials: {trials}")
        points = PointPlanner(self.sweep)
        for _, study in open_studies(points, self.home.studies_uri(self.sweep)):
            while (trial := study.ask()) is not None:
                self._tell(points, study, trial)

    def _tell(self, points: PointPlanner, study: Study, trial: Tried) -> None:
        told = len(study.known) - 1
        if told == FAILED:
            study.tell_failed(trial.number, "out of memory (log: worker.log)")
            return
        plan = points.plan(points.trials(trial.point, 25 if told == PRUNED else None))
        synthetic.commit(self.store, plan)
        found = points.numbers(plan, self.store, trial.point)
        values = [found.found[goal.name] for goal in study.goals]
        if trial.point["finetune.steps"] > 25 or told == PRUNED:
            study.report(trial.number, 25, values[0] / 2)
        if told == PRUNED:
            study.tell_pruned(trial.number, found.found, found.violations)
        else:
            study.tell(trial.number, values, found.found, found.violations)

    def confirm(self) -> None:
        points = PointPlanner(self.sweep)
        for trials in self.tried().values():
            for trial in confirmed(trials, points):
                synthetic.commit(self.store, points.confirming(trial.point))

    def tried(self) -> dict[str, list[Tried]]:
        storage = self.home.studies_uri(self.sweep)
        return {name: tried for name, _, tried in read_studies(PointPlanner(self.sweep), storage)}

    def view(self) -> StudyView:
        return StudyView(PointPlanner(self.sweep), self.home.studies_uri(self.sweep), self.store)

    def sync(self, with_files: bool = True) -> Counts:
        return Tracker(self.uri, self.home.artifacts).sync(self.view(), with_files)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self, kind: str, text: str = "") -> list[Any]:
        experiment = self.client.get_experiment_by_name("found")
        assert experiment is not None
        found = self.client.search_runs([experiment.experiment_id], text)
        return [run for run in found if run.data.tags["resurge.kind"] == kind]

    def study(self, name: str = "found/esd") -> Any:
        (run,) = [run for run in self.runs("study") if run.info.run_name == name]
        return run

    def trials(self, name: str = "found/esd", kind: str = "trial") -> dict[int, Any]:
        runs = self.runs(kind, f"tags.resurge.study = '{name}'")
        return {int(run.data.tags["resurge.number"]): run for run in runs}

    def history(self, run: Any, metric: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def artifacts(self, run: Any) -> set[str]:
        return {item.path for item in self.client.list_artifacts(run.info.run_id)}

    def read(self, run: Any, name: str) -> bytes:
        return Path(self.client.download_artifacts(run.info.run_id, name)).read_bytes()


@pytest.fixture(scope="module")
def synced(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished search, synced once. Tests leave it as it is."""
    place = Place(tmp_path_factory.mktemp("synced"), database)
    place.search(8)
    place.confirm()
    place.sync()
    return place


@pytest.fixture
def place(tmp_path: Path, database: Path) -> Place:
    return Place(tmp_path, database)


def test_a_run_a_study_a_run_a_trial_and_one_for_what_was_confirmed(synced: Place) -> None:
    assert {run.info.run_name for run in synced.runs("study")} == {"found/esd", "found/uce"}
    for name, tried in synced.tried().items():
        study = synced.study(name)
        below = [*synced.trials(name).values(), *synced.trials(name, "confirmed").values()]
        assert len(below) == 8 + 2
        assert {r.data.tags["mlflow.parentRunId"] for r in below} == {study.info.run_id}
        assert synced.trials(name).keys() == {trial.number for trial in counted(tried)}


def test_repeats_are_no_trials(synced: Place) -> None:
    tried = synced.tried()["found/esd"]
    repeats = {trial.number for trial in tried if trial.repeat_of is not None}
    assert repeats
    assert repeats.isdisjoint(synced.trials())


def test_a_study_says_what_it_sought_and_where(synced: Place) -> None:
    run = synced.study()
    expected = {
        "maximize": "resurgence",
        "subject_to": "retained_accuracy >= 0.5",
        "sampler": "random",
        "pruner": "median",
        "trials": "8",
        "seeds": "0",
        "unlearn.method": "esd",
        "concept": "star",
    }
    assert expected.items() <= run.data.params.items()
    assert run.data.params.keys().isdisjoint({"finetune.dataset", "finetune.steps", "seed"})
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == synthetic.GIT_SHA
    note = run.data.tags["mlflow.note.content"]
    assert "8 of 8 trials: 6 run to the end, 1 pruned, 1 failed." in note
    assert "Worst case: related lr=1e-3" in note


def test_a_study_has_its_best_so_far_over_the_number_of_trials(synced: Place) -> None:
    run = synced.study()
    curve = synced.history(run, "best_so_far")
    assert [step for step, _ in curve] == list(range(1, 9))
    values = [value for _, value in curve]
    assert values == sorted(values)
    (top,) = best(synced.tried()["found/esd"], PointPlanner(synced.sweep).search.goals, 1)
    assert values[-1] == pytest.approx(top.values[0], abs=1e-3)
    covered = [value for _, value in synced.history(run, "coverage")]
    assert covered == sorted(covered) and 0 < covered[-1] < 1


def test_a_study_has_what_matters_and_the_worst_case(synced: Place) -> None:
    metrics = synced.study().data.metrics
    shares = {k: v for k, v in metrics.items() if k.startswith("importance.")}
    assert len(shares) == 3 and sum(shares.values()) == pytest.approx(1, abs=0.01)
    low, mean, high = (metrics[f"worst_case.resurgence{end}"] for end in ("_low", "", "_high"))
    assert low < mean < high
    assert metrics["worst_case.searched"] > 0.2
    assert metrics["worst_case.control"] > 0.9
    assert (metrics["trials.done"], metrics["trials.pruned"], metrics["trials.failed"]) == (6, 1, 1)


def test_a_trials_state_is_its_status(synced: Place) -> None:
    runs = synced.trials()
    tried = {trial.number: trial for trial in synced.tried()["found/esd"]}
    status = {"done": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
    for number, run in runs.items():
        assert run.info.status == status[tried[number].state]
        assert run.data.tags["resurge.state"] == tried[number].state
        times = (run.info.start_time, run.info.end_time)
        assert times == (tried[number].started_ms, tried[number].ended_ms)
    (failed,) = [run for run in runs.values() if run.info.status == "FAILED"]
    for tag in ("resurge.reason", "mlflow.note.content"):
        assert failed.data.tags[tag] == "out of memory (log: worker.log)"


def test_a_trial_has_its_settings_and_its_numbers_over_steps(synced: Place) -> None:
    tried = {t.number: t for t in synced.tried()["found/esd"] if t.state == "done" and t.curve}
    number, trial = next(iter(tried.items()))
    run = synced.trials()[number]
    assert run.data.params == {name: str(value) for name, value in trial.point.items()}
    curve = synced.history(run, "resurgence")
    assert [step for step, _ in curve] == [25, trial.point["finetune.steps"]]
    assert curve[-1][1] == pytest.approx(trial.values[0], abs=1e-3)
    assert {"erased_accuracy", "retained_accuracy", "recovery"} <= run.data.metrics.keys()
    assert "finetune.steps" not in run.data.metrics
    assert run.info.run_name.startswith(f"trial {number} · esd {trial.point['finetune.dataset']}")


def test_a_pruned_trial_keeps_what_it_measured(synced: Place) -> None:
    runs = synced.trials().values()
    (run,) = [run for run in runs if run.data.tags["resurge.state"] == "pruned"]
    assert [step for step, _ in synced.history(run, "resurgence")] == [25]
    assert "retained_accuracy" in run.data.metrics


def test_what_was_confirmed_is_on_fresh_seeds_with_intervals(synced: Place) -> None:
    (run, _) = synced.trials(kind="confirmed").values()
    assert run.data.params["seeds"] == "1, 2"
    assert run.data.tags["resurge.confirmed"] == "true"
    metrics = run.data.metrics
    assert metrics["resurgence_low"] < metrics["resurgence"] < metrics["resurgence_high"]
    assert {"searched", "control", "base", "unlearned", "retained_accuracy"} <= metrics.keys()
    images = synced.client.list_artifacts(run.info.run_id, "images")
    names = [Path(item.path).name for item in images if item.path.endswith(".png")]
    steps = sorted(int(name.split("+")[2]) for name in names)
    assert steps == [0, int(run.data.params["finetune.steps"])]


def test_the_worst_case_is_tagged_where_it_was_found_and_where_it_was_confirmed(
    synced: Place,
) -> None:
    for name in synced.tried():
        wanted = f"tags.resurge.study = '{name}' and tags.resurge.worst_case = 'true'"
        (trial,), (again,) = synced.runs("trial", wanted), synced.runs("confirmed", wanted)
        assert trial.data.tags["resurge.number"] == again.data.tags["resurge.number"]
        assert trial.data.tags["resurge.confirmed"] == "true"
        assert len(synced.runs("trial", f"{wanted} and tags.resurge.confirmed = 'true'")) == 1


def test_runs_name_the_trials_that_can_be_reproduced(synced: Place) -> None:
    plan = Job(synced.sweep, synced.home).plan
    digests = {trial.digest for trial in plan.trials}
    for kind in ("trial", "confirmed"):
        for run in synced.runs(kind, "attributes.status != 'FAILED'"):
            assert run.data.tags["resurge.trial"] in digests
    (run, _) = synced.trials(kind="confirmed").values()
    assert run.data.tags["resurge.trial.seed_2"] in digests


def test_the_plots_are_there_as_pictures(synced: Place) -> None:
    for name in ("history.png", "importance.png", "slice.png", "contour.png"):
        with Image.open(io.BytesIO(synced.read(synced.study(), name))) as image:
            assert image.width > 500
            assert len(image.convert("L").getcolors() or [None] * 256) > 10


def test_the_plots_are_one_page_that_needs_nothing_else(synced: Place) -> None:
    page = synced.read(synced.study(), "study.html").decode()
    assert page.count('class="plot"') == 4
    assert page.count("<html") == 1
    assert "<script src" not in page and 'charset="utf-8"' in page
    for heading in ("By trial", "What each setting matters", "Over each setting"):
        assert f"<h2>{heading}</h2>" in page


def test_the_space_and_the_file_are_there(synced: Place) -> None:
    run = synced.study()
    assert json.loads(synced.read(run, "space.json"))["finetune.steps"]["int"] == [25, 75]
    assert synced.read(run, "sweep.yaml").decode() == synced.text


def test_syncing_again_writes_and_draws_nothing(
    synced: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.search_figures._png", None)
    assert synced.sync() == Counts(created=0, updated=0, unchanged=22)
    assert synced.sync(with_files=False) == Counts(created=0, updated=0, unchanged=22)


def test_a_search_under_way_fills_in_and_is_drawn_when_it_is_over(place: Place) -> None:
    place.search(4)
    place.text = FOUND
    place.sync(with_files=False)
    assert {run.info.status for run in place.runs("study")} == {"RUNNING"}
    assert place.runs("confirmed") == []
    assert "history.png" not in place.artifacts(place.study())
    place.search(8)
    place.confirm()
    place.sync()
    assert {run.info.status for run in place.runs("study")} == {"FINISHED"}
    assert [step for step, _ in place.history(place.study(), "best_so_far")] == list(range(1, 9))
    assert {"history.png", "study.html"} <= place.artifacts(place.study())
    assert place.sync().unchanged == 22


def test_a_trial_that_runs_is_shown_when_it_has_measured_something(place: Place) -> None:
    points = PointPlanner(place.sweep)
    (_, study), _ = open_studies(points, place.home.studies_uri(place.sweep))
    first, second = study.ask(), study.ask()
    assert first and second
    study.report(first.number, 25, 0.1)
    place.sync()
    assert {n: run.info.status for n, run in place.trials().items()} == {0: "RUNNING"}
    study.tell_failed(first.number, "gone")
    place.sync()
    assert {n: run.info.status for n, run in place.trials().items()} == {0: "FAILED"}


def test_nothing_is_shown_before_there_is_something(place: Place) -> None:
    assert place.sync() == Counts()


def test_a_worse_case_takes_over_the_tag(place: Place) -> None:
    place.search(2)
    place.confirm()
    place.sync(with_files=False)
    before = place.runs("confirmed", "tags.resurge.worst_case = 'true'")
    place.search(12)
    place.confirm()
    place.sync(with_files=False)
    after = place.runs("confirmed", "tags.resurge.worst_case = 'true'")
    assert len(before) == len(after) == 2
    assert {run.info.run_id for run in before} != {run.info.run_id for run in after}
    assert len(place.runs("trial", "tags.resurge.worst_case = 'true'")) == 2
    assert len(place.runs("trial", "tags.resurge.confirmed = 'true'")) == 4
    # A parameter stays as it was first written; the tag tells the budget of now.
    assert place.study().data.params["trials"] == "2"
    assert place.study().data.tags["resurge.budget"] == "12"
    counts = place.sync(with_files=False)
    assert (counts.created, counts.updated) == (0, 0)


def test_what_a_search_has_asked_for_since_is_read_again(place: Place) -> None:
    place.search(2)
    before = Job(place.sweep, place.home)
    counted = len(before.plan.trials)
    place.search(4)
    assert len(before.plan.trials) == counted
    now = before.now()
    assert len(now.plan.trials) > counted
    assert now.points is before.points


def test_a_job_of_a_search_syncs_its_studies_and_its_results(synced: Place) -> None:
    job = Job(synced.sweep, synced.home)
    assert "0 runs created, 0 updated" in sync_job(job)
    assert is_synced(job)
    rows = pq.read_table(synced.home.results("found"))
    assert rows.num_rows == len(job.plan.trials)
    # More trials, none of which has a record yet.
    more = parse(FOUND.replace("trials: 8", "trials: 9"))
    assert not is_synced(Job(more, synced.home))


HUNT = """
name: hunt
base: tiny
concept: star
edits:
  - unlearn: dim
  - finetune: {dataset: dots, batch_size: 2, learning_rate: 3.0e-2}
evaluate: {metrics: [glow], images_per_prompt: 1, retain: []}
search:
  maximize: resurgence
  space:
    finetune.steps: [1, 2]
  sampler: grid
  confirm: {top: 1, seeds: 1}
resources: {executor: inline}
"""


def searched(home: Home, **changed: str) -> str:
    """What `resurge search` prints."""
    stream = io.StringIO()
    overrides = tuple(f"{name}={value}" for name, value in changed.items())
    search.run_search(parse(HUNT, None, overrides), home, Console(file=stream, width=200))
    return stream.getvalue()


@pytest.mark.slow
def test_a_search_keeps_mlflow_up_to_date_and_a_finished_one_writes_nothing(
    tmp_path: Path, database: Path, calls: Callable[[], list[str]]
) -> None:
    home = Home(tmp_path)
    shutil.copy(database, tmp_path / "mlflow.db")
    assert "MLflow" not in searched(home)
    assert "glow" in calls()
    client = MlflowClient(home.mlflow_uri())
    experiment = client.get_experiment_by_name("hunt")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    kinds = sorted(run.data.tags["resurge.kind"] for run in runs)
    assert kinds == ["confirmed", "study", "trial", "trial"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (study,) = [run for run in runs if run.data.tags["resurge.kind"] == "study"]
    assert "study.html" in {f.path for f in client.list_artifacts(study.info.run_id)}
    assert home.results("hunt").exists()

    written = (tmp_path / "mlflow.db").read_bytes()
    assert "MLflow" not in searched(home)
    assert (tmp_path / "mlflow.db").read_bytes() == written


@pytest.mark.slow
def test_mlflow_being_away_stops_no_search(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    (tmp_path / "file").write_text("not a folder")
    away = {"mlflow": f"sqlite:///{tmp_path}/file/mlflow.db"}
    for _ in range(2):
        printed = searched(Home(tmp_path / "home"), **away)
        assert "MLflow is behind" in printed
        assert "resurge sync hunt" in printed
    assert calls().count("dim") == 1
