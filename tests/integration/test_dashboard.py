"""`resurge dashboard` serves the studies of a search on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import open_studies
from orchestrator.sweepfile.load import load

pytestmark = pytest.mark.integration

RESURGE = str(Path(sys.executable).parent / "resurge")
FOUND = """
name: found
base: shapes
concept: star
edits: [{unlearn: [esd, uce]}, {finetune: {dataset: related}}]
evaluate: {metrics: [concept_accuracy]}
search:
  maximize: resurgence
  for_each: unlearn.method
  space: {finetune.steps: [25, 50]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "found.yaml").write_text(FOUND)
    return tmp_path


def ask_and_tell(folder: Path) -> None:
    """One trial in each study, told by hand."""
    points = PointPlanner(load(folder / "found.yaml"))
    for _, study in open_studies(points, f"sqlite:///{folder}/.resurge/studies.db"):
        trial = study.ask()
        assert trial is not None
        study.tell(trial.number, [0.5], {"resurgence": 0.5}, {})


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The dashboard's address; it is ended by Ctrl-C, as a person would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [RESURGE, "dashboard", "found.yaml", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, address)
        yield address
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], address: str) -> None:
    for _ in range(900):
        assert server.poll() is None, "the dashboard ended early"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the dashboard did not come up")


def test_it_serves_its_page_and_the_studies(folder: Path) -> None:
    ask_and_tell(folder)
    with serving(folder) as address:
        with urllib.request.urlopen(f"{address}/dashboard") as answer:
            assert "Optuna Dashboard" in answer.read().decode()
        with urllib.request.urlopen(f"{address}/api/studies") as answer:
            found = json.load(answer)["study_summaries"]
        assert {study["study_name"] for study in found} == {"found/esd", "found/uce"}
        with urllib.request.urlopen(f"{address}/api/studies/{found[0]['study_id']}") as answer:
            (trial,) = json.load(answer)["trials"]
        assert trial["state"] == "Complete" and trial["values"] == [0.5]


def test_it_says_that_there_are_no_studies_yet(folder: Path) -> None:
    assert "there are no studies at" in refused(folder, "found.yaml").stderr


def test_a_sweep_without_a_search_has_no_studies(folder: Path) -> None:
    (folder / "found.yaml").write_text(FOUND[: FOUND.index("search:")])
    assert "has no `search` block" in refused(folder, "found.yaml").stderr


def test_a_name_that_was_never_run_is_unknown(folder: Path) -> None:
    assert "none has been run yet" in refused(folder, "found").stderr


def refused(folder: Path, sweep: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [RESURGE, "dashboard", sweep], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (folder / ".resurge").exists()
    return done
