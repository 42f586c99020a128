"""A sweep from file to results: what happens in which order."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.home import Home
from orchestrator.run.job import Job, open_job
from orchestrator.run.run import run_job


@pytest.fixture
def job(tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """A sweep of a few stages, to be run by the executor of that name."""
    monkeypatch.setenv("RESURGE_HOME", str(tmp_path / "home"))
    path = tmp_path / "small.yaml"
    path.write_text(small)
    given = ("seeds=1", "unlearn=nudge", "finetune.learning_rate=1e-3", "finetune.steps=[1]")
    return lambda name: open_job(str(path), (*given, f"resources.executor={name}"), Home.find(None))


def test_no_worker_waits_for_mlflow(
    calls: Callable[[], list[str]], job: Callable[[str], Job]
) -> None:
    """Bringing MLflow up to date may take minutes, in which others could have the GPU."""
    noting = job("noting")
    assert run_job(noting, Console(file=io.StringIO())).ok
    ended = [line for line in calls() if line.startswith("the worker ends")]
    assert ended == ["the worker ends, results written: False"]
    assert noting.home.results("small").exists()


def test_what_is_set_aside_on_the_way_is_made_again(
    calls: Callable[[], list[str]], job: Callable[[str], Job]
) -> None:
    finding = job("finding")
    outcome = run_job(finding, Console(file=io.StringIO()))
    [lost] = [line for line in calls() if line.startswith("lost ")]
    assert lost.endswith(": None"), "the record was set aside"
    assert outcome.ok
    assert finding.done() == outcome.ran == {stage.key for stage in finding.plan.stages}
