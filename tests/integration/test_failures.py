"""Memory, NaN, a plug-in's bug and a hang, on real workers: what the user is told of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.artifacts import Cause
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import make_plan
from orchestrator.schedule.failures import ADVICE, MAX_HANGS, SPLITS
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("calls")]

SWEEP = """
name: trouble
base: tiny
concept: star
edits:
  - unlearn: [nudge, {trip: {over: [memory, bug, silence]}}]
  - finetune:
      {dataset: dots, batch_size: 2, steps: [1, 9], warmup_steps: 9, learning_rate: [1.0e-3, 5]}
evaluate: {metrics: [glow], images_per_prompt: 1, retain: [], controls: false}
resources: {workers: 2, threads: 1, stage_timeout_min: 0.5}
"""


def test_each_trouble_has_its_own_end(tmp_path: Path) -> None:
    path, home = tmp_path / "trouble.yaml", tmp_path / "home"
    path.write_text(SWEEP)
    command = [str(Path(sys.executable).parent / "resurge"), "run", str(path), "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "Traceback" not in said

    failures = Store(home / "store").failures()
    stages = {stage.key: stage for stage in make_plan(parse(SWEEP)).stages}
    causes = {what(stages[key]): failure.cause for key, failure in failures.items()}
    assert causes == {
        "memory": "oom",
        "bug": "bug",
        "silence": "hang",
        "5.0": "nan",  # too much, but not at once
    }
    by_cause: dict[Cause, str] = {f.cause: f.message for f in failures.values()}
    assert f"not even with {SPLITS[-1]} parts a batch" in by_cause["oom"]
    assert f"nothing was heard for 0.5 min, on {MAX_HANGS} workers" in by_cause["hang"]
    for cause in by_cause:
        assert f"failed ({cause})" in said
        assert ADVICE[cause] in said
    for failure in failures.values():
        assert Path(failure.log_path).exists()
        assert f"log: {failure.log_path}" in said

    [curve] = [failure.curve for failure in failures.values() if failure.cause == "nan"]
    assert curve and curve[0][0] == 1, "the curve up to there is kept"
    lost = {s.key for s in stages.values() if not failures.keys().isdisjoint(lineage(s))}
    assert Store(home / "store").keys() == stages.keys() - lost, "all others are done"


def lineage(stage: Stage) -> set[str]:
    """What a stage cannot be without: its ancestors, and lower step counts of its trajectory."""
    return {one.key for one in (stage, *stage.ancestry())}


def what(stage: Stage) -> str:
    """What made the stage fail: what it tripped over, or its learning rate."""
    settings = stage.settings["settings"]
    return str(settings.get("over") or settings["learning_rate"])
