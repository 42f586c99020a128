"""Nothing is left to run: what MLflow lacks is written, and what it refuses hides no results."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from orchestrator.home import Home
from orchestrator.run.job import Job
from orchestrator.run.run import is_synced, run_job, sync_job
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.database import TrackingError

CHANGES = ("seeds=1", "unlearn=nudge", "finetune.learning_rate=1e-3", "finetune.steps=[1]")


def printed(job: Job) -> str:
    """What a run prints that must be done with."""
    stream = io.StringIO()
    assert run_job(job, Console(file=stream, width=200)).ok
    return stream.getvalue()


@pytest.mark.slow
def test_a_run_again_brings_mlflow_up_to_date(
    tmp_path: Path, small: str, calls: Callable[[], list[str]]
) -> None:
    def job() -> Job:
        return Job(parse(small, None, CHANGES), home)

    home = Home(tmp_path / "home")
    database = home.root / "mlflow.db"
    database.mkdir(parents=True)
    assert "MLflow is behind (MLflow's database" in printed(job()), "a folder in its place"
    assert calls()
    for damage in (lambda: None, lambda: (database.rmdir(), database.write_text("no database"))):
        damage()
        assert "MLflow is behind (MLflow's database" in printed(job())
        with pytest.raises(TrackingError, match="MLflow's database"):
            sync_job(job())
    database.unlink()
    assert "MLflow: 5 runs created" in printed(job())
    assert is_synced(job())
    assert "MLflow" not in printed(job())

    client = MlflowClient(home.mlflow_uri())
    parent = client.search_runs(["1"], "tags.resurge.kind = 'sweep'")[0]
    client.delete_run(parent.info.run_id)
    assert "MLflow: 1 runs created, 4 updated" in printed(job())

    shutil.rmtree(home.root / "results")
    (home.root / "results").write_text("stands for a folder that cannot be written")
    assert "small.parquet cannot be written" in printed(job())
    (home.root / "results").unlink()
    assert calls() == [], "all of it without running a stage"

    database.unlink()
    assert not is_synced(job())
