"""The command line: what it prints, its exit codes, no traceback for what a user can cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

Calls = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("calls")

RESURGE = str(Path(sys.executable).parent / "resurge")
BRIEF = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "resources.executor=inline")


def resurge(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [RESURGE, *arguments], capture_output=True, text=True, cwd=cwd, env=dict(os.environ)
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path, small: str) -> Path:
    (tmp_path / "small.yaml").write_text(small)
    return tmp_path


def test_help_teaches(tmp_path: Path) -> None:
    done = resurge("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ["plan", "run", "status", "results", "sync", "export", "ui", "schema", "list"]:
        assert command in done.stdout
    assert "sweeps/quickstart.yaml" in done.stdout


def test_plan_counts_and_draws_the_tree(folder: Path) -> None:
    done = resurge("plan", "small.yaml", cwd=folder)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["finetune", "24", "24", "0", "24"] in rows
    assert ["sample", "84", "28", "0", "28"] in rows
    assert "unlearn shake star seed 1" in done.stdout
    assert "minimum detectable resurgence" in done.stdout
    assert not (folder / ".resurge").exists()  # planning leaves nothing behind


def test_list_shows_every_kind_and_one_kind(tmp_path: Path) -> None:
    everything = resurge("list", cwd=tmp_path).stdout
    for name in ("shapes", "esd", "uce", "related", "concept_accuracy", "ray", "inline"):
        assert name in everything
    assert "shapes" not in resurge("list", "metrics", cwd=tmp_path).stdout.split()
    done = resurge("list", "metric", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'metrics'" in done.stderr


def test_schema_is_json(tmp_path: Path) -> None:
    assert json.loads(resurge("schema", cwd=tmp_path).stdout)["$schema"].startswith("https://")


def test_bad_input_is_exit_code_2(folder: Path) -> None:
    for arguments, said in [
        (("run", "absent.yaml"), "no such file"),
        (("plan", "small.yaml", "seeds=0"), "seeds"),
        (("results", "smal"), "none has been run yet"),
        (("results", "small.yaml", "--csv", "--json"), "do not go together"),
        (("results", "small.yaml", "--by", "unlearn.metod"), "did you mean 'unlearn.method'"),
    ]:
        done = resurge(*arguments, cwd=folder)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "error:" in done.stderr
    assert not (folder / ".resurge" / "store" / "records").exists()


@pytest.mark.slow
def test_a_sweep_from_run_to_export(folder: Path, calls: Calls) -> None:
    done = resurge("run", "small.yaml", *BRIEF, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resurge ui" in done.stdout
    assert "brightness" in done.stdout
    calls()

    again = resurge("run", "small.yaml", *BRIEF, cwd=folder)
    assert "0 stages ran" in again.stdout
    assert calls() == []

    assert "trials 6/6 done" in resurge("status", "small", cwd=folder).stdout
    assert "resurgence" in resurge("results", "small", cwd=folder).stdout
    averaged = resurge("results", "small", "--by", "finetune.steps", "--json", cwd=folder)
    assert {row["finetune.steps"] for row in json.loads(averaged.stdout)} == {1, 2}
    table = resurge("results", "small", "--csv", cwd=folder).stdout.splitlines()
    assert len(table) == 1 + 6 and "p_holm" in table[0]
    times = resurge("results", "small", "--time-to-resurgence", "--threshold", "0.5", cwd=folder)
    assert "at or above 0.5" in times.stdout
    assert "0 runs created, 0 updated" in resurge("sync", "small", cwd=folder).stdout
    exported = resurge("export", "small", "--to", "out", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert pq.read_table(folder / "out" / "small.parquet").num_rows == 6
    assert (folder / "out" / "small.csv").read_text().count("\n") == 7
    assert pq.read_table(folder / "out" / "small.settings.parquet").num_rows == 6
    with Image.open(folder / "out" / "small.png") as image:
        assert image.width > 500

    typo = resurge("status", "smal", cwd=folder)
    assert typo.returncode == 2
    assert "did you mean 'small'" in typo.stderr


@pytest.mark.slow
def test_plan_says_what_it_would_take_once_stages_of_the_base_have_run(folder: Path) -> None:
    asked = ("plan", "small.yaml", *BRIEF, "--workers", "2")
    unknown = resurge(*asked, cwd=folder)
    assert unknown.returncode == 2
    assert "no stage of this base has run yet" in unknown.stderr
    assert resurge("run", "small.yaml", *BRIEF, cwd=folder).returncode == 0
    known = resurge(*asked, "seeds=3", "--price", "2.5", cwd=folder)
    assert known.returncode == 0
    for said in ("On 2 workers (CPU)", "every trial alone", "to run now", "cost"):
        assert said in known.stdout
    lonely = resurge("plan", "small.yaml", "--price", "2.5", cwd=folder)
    assert lonely.returncode == 2
    assert "--workers" in lonely.stderr


def test_a_failure_is_exit_code_1_with_the_log(folder: Path) -> None:
    broken = ("unlearn=[nudge, {nudge: {fail: true}}]", *BRIEF[1:])
    done = resurge("run", "small.yaml", *broken, cwd=folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "told to fail" in done.stdout
    assert "8 skipped" in done.stdout  # its images and scores; two step counts with theirs
    (log,) = (line.split()[-1] for line in done.stdout.splitlines() if " log: " in line)
    assert "Traceback" in Path(log).read_text()
    assert "1 failed" in resurge("status", "small", cwd=folder).stdout
