"""A sweep from file to results: what happens in which order."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.home import Home
from orchestrator.run import open_job, run_job


def test_no_worker_waits_for_mlflow(
    tmp_path: Path, small: str, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bringing MLflow up to date may take minutes, in which others could have the GPU."""
    monkeypatch.setenv("RESURGE_HOME", str(tmp_path / "home"))
    path = tmp_path / "small.yaml"
    path.write_text(small)
    given = ("seeds=1", "unlearn=nudge", "finetune.steps=[1]", "resources.executor=noting")
    job = open_job(str(path), given, Home.find(None))
    assert run_job(job, Console(file=io.StringIO())).ok
    ended = [line for line in calls() if line.startswith("the worker ends")]
    assert ended == ["the worker ends, results written: False"]
    assert job.home.results("small").exists()
