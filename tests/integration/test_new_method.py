"""An unlearning method is one file: put in a folder, it is listed, checked, planned and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

METHOD = '''
"""Dim: turn down what cross-attention says."""

from pydantic import Field

from orchestrator.core.settings import Preset, PresetSettings
from workers.interfaces.unlearner import Unlearned, Unlearner


class DimSettings(PresetSettings):
    """How far down."""

    PRESETS = {"dark": Preset({"factor": 0.0}, "ours", "")}

    factor: float = Field(0.5, ge=0, le=1, description="what the values are multiplied by")


class Dim(Unlearner):
    """Multiply every cross-attention's values."""

    name = "dim"
    seeded = False
    paper = "Nobody, unpublished"
    Settings = DimSettings

    def unlearn(self, erasure):
        import torch

        from workers.editing.edits import Weights

        pipe, names = erasure.pipe, []
        with torch.no_grad():
            for name, value in pipe.unet.named_parameters():
                if name.endswith("attn2.to_v.weight"):
                    value.mul_(self.settings.factor)
                    names.append(f"unet.{name}")
        return Unlearned([Weights.of(pipe, names)], {"layers": float(len(names))})
'''

SWEEP = """
name: outside
base: shapes
concept: star
edits:
  - unlearn: [none, dim: {preset: dark}]
evaluate:
  metrics: [concept_accuracy]
  images_per_prompt: 1
  sampler_steps: 4
  prompts: ["a red {concept}"]
  retain: [circle]
  controls: false
seeds: 1
resources: {executor: inline}
"""


def resurge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "resurge"), *arguments],
        cwd=folder,
        env={**os.environ, "RESURGE_PLUGINS": str(folder / "methods"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_from_list_to_results(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "dim.py").write_text(METHOD)
    (tmp_path / "outside.yaml").write_text(SWEEP)

    for page in (("list", "unlearners"), ("list", "unlearners", "dim")):
        printed = resurge(tmp_path, *page).stdout
        for part in ("Multiply every cross-attention's values.", "Nobody, unpublished", "dark"):
            assert part in printed

    refused = resurge(tmp_path, "plan", "outside.yaml", "unlearn=[{dim: {factor: 2}}]")
    assert refused.returncode == 2
    assert "factor" in refused.stderr and "<= 1" in refused.stderr

    planned = resurge(tmp_path, "plan", "outside.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "unlearn dim" in planned.stdout

    done = resurge(tmp_path, "run", "outside.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pq.read_table(tmp_path / ".resurge" / "results" / "outside.parquet").to_pylist()
    assert {row["unlearn.method"] for row in table} == {"none", "dim"}
