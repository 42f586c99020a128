"""A sweep that is edited and run again: what MLflow shows is what the sweep says now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.home import Home
from orchestrator.plan.plan import make_plan
from orchestrator.run.job import Job, open_results
from orchestrator.run.run import view_of
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.mlflow import Counts, sync
from tests.orchestrator import synthetic

TEXT = """
name: edited
base: shapes
concept: star
edits: [{unlearn: uce}, {finetune: {dataset: related, learning_rate: 1.0e-3, steps: 50}}]
evaluate: {metrics: [concept_accuracy], images_per_prompt: 4, controls: false}
"""
RUNS = 3
"""The sweep, a trajectory and a trial."""


class Place:
    """A home whose sweeps get made-up records."""

    def __init__(self, root: Path, database: Path) -> None:
        shutil.copy(database, root / "mlflow.db")
        self.home = Home(root)
        self.store = Store(self.home.store_location())

    def sync(self, *overrides: str, text: str = TEXT) -> Counts:
        sweep = parse(text, None, overrides)
        synthetic.commit(self.store, make_plan(sweep))
        view = view_of(Job(sweep, self.home, self.store))
        return sync(view, self.home.mlflow_uri(), self.home.artifacts)

    def runs(self, kind: str, also: str = "params.base = 'shapes'") -> list[Any]:
        client = MlflowClient(self.home.mlflow_uri())
        experiment = client.get_experiment_by_name("edited")
        assert experiment is not None
        text = f"tags.resurge.kind = '{kind}' and {also}"
        return client.search_runs([experiment.experiment_id], text)

    def recorded(self) -> str:
        (run,) = self.runs("sweep", "attributes.status = 'FINISHED'")
        client = MlflowClient(self.home.mlflow_uri())
        return Path(client.download_artifacts(run.info.run_id, "sweep.yaml")).read_text()


@pytest.fixture
def place(tmp_path: Path, database: Path) -> Place:
    return Place(tmp_path, database)


@pytest.mark.parametrize(
    "change",
    [
        "evaluate.images_per_prompt=2",
        "evaluate.guidance=5",
        "evaluate.prompts=['a {concept}', 'one {concept}']",
        "evaluate.retain=[circle]",
        "evaluate.metrics=[concept_accuracy, weight_distance]",
        "evaluate.controls=true",
    ],
)
def test_numbers_of_another_evaluation_are_other_runs(place: Place, change: str) -> None:
    assert place.sync().created == RUNS
    before = {run.info.run_id: run.data.params for run in place.runs("trial")}
    assert place.sync(change).left == RUNS - 1
    trials = place.runs("trial", "params.control = 'false'")
    now = {run.info.run_id: run.data.params for run in trials}
    assert len(now) == len(before) == 1 and not now.keys() & before.keys()
    name = change.partition("=")[0]
    assert {params[name] for params in now.values()} != {p[name] for p in before.values()}
    # Back again, they are the runs that they were.
    assert place.sync().created == 0
    assert {run.info.run_id for run in place.runs("trial")} == before.keys()


@pytest.mark.parametrize(
    "change",
    [
        "finetune.batch_size=16",
        "finetune.gradient_checkpointing=false",
        "unlearn.uce.erase_scale=1.0",
        "evaluate.noise_seed=0",
        # What only saves memory, or is not used, makes no difference either.
        "evaluate.batch_size=32",
        "finetune.gradient_checkpointing=true",
        "finetune.lora_rank=8",
    ],
)
def test_what_means_the_same_is_the_same_run(place: Place, change: str) -> None:
    place.sync()
    before = {run.info.run_id for run in place.runs("trial")}
    counts = place.sync(change)
    assert (counts.created, counts.left) == (0, 0)
    assert {run.info.run_id for run in place.runs("trial")} == before


def test_an_axis_that_makes_no_difference_has_all_its_runs(place: Place) -> None:
    """Two settings that mean the same are one run, unless the sweep has both."""
    place.sync()
    assert place.sync("finetune.gradient_checkpointing=[false, true]").shown == 1 + 2 * (RUNS - 1)


def test_each_concept_has_its_own_prompts(place: Place) -> None:
    place.sync("concept=[star, circle]")
    prompts = {
        run.data.params["concept"]: run.data.params["evaluate.prompts"]
        for run in [*place.runs("trial"), *place.runs("trajectory")]
    }
    assert all(concept in prompts[concept] for concept in ("star", "circle"))
    assert prompts["star"].replace("star", "circle") == prompts["circle"]


def test_what_was_run_shows_the_same_as_what_is_run(place: Place) -> None:
    """A stored sweep has its plan and no plug-ins."""
    changes = ("finetune.steps=[0, 50]", "finetune.learning_rate=[1e-3,3e-4]")
    place.sync(*changes)
    job = Job(parse(TEXT, None, changes), place.home, place.store)
    job.remember()
    stored = view_of(open_results("edited", place.home))
    again = sync(stored, place.home.mlflow_uri(), place.home.artifacts)
    assert again == Counts(unchanged=1 + 2 + 4)
    assert [run.digest for run in stored.runs()] == [run.digest for run in view_of(job).runs()]


def test_an_axis_that_shrinks_leaves_what_is_left(place: Place) -> None:
    place.sync("finetune.learning_rate=[1e-3,3e-4]")
    assert place.sync().left == RUNS - 1
    assert {run.data.params["finetune.learning_rate"] for run in place.runs("trial")} == {"0.001"}


def test_the_sweep_that_is_recorded_is_the_one_that_ran(place: Place) -> None:
    place.sync()
    assert place.recorded() == TEXT
    place.sync("seeds=2", "finetune.learning_rate=3e-4")
    assert "seeds=2" in place.recorded().partition("name:")[0]
    assert parse(place.recorded()) == parse(TEXT, None, ("seeds=2", "finetune.learning_rate=3e-4"))
