"""Every preset for Stable Diffusion with 1.4's weights, at random, for two iterations.

Pictures have 128 pixels a side instead of 512: weights, gradients and moments take the memory,
pixels the hours; test_full_size.py has 512. benchmarks/gpu.py runs all presets with 512 on a GPU;
those that need more of it than a CPU has beside the base's copy are not here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.core.registry import registry
from tests.full_size.full_run import LIMIT_BYTES, ONE_PICTURE, Run, build_model, run_sweep
from tests.full_size.presets import (
    CASES,
    CPU_GIB,
    REFUSED,
    Case,
    peaks_gib,
    set_side,
    sweep_of,
)

TIMEOUT_S = 4 * 60 * 60
PEAKS = peaks_gib()
HERE = [case for case in CASES if PEAKS[f"{case.method} {case.preset}"] <= CPU_GIB]
pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.integration]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One sweep of all presets: the base is loaded once, and a stage's failure is its own.

    It takes an hour. With PRESETS_FOLDER=FOLDER it is kept there, and goes on when begun again.
    """
    kept = os.environ.get("PRESETS_FOLDER")
    root = Path(kept) if kept else tmp_path_factory.mktemp("presets")
    model = root / "model"
    if not model.exists():
        build_model("sd14", model)
    set_side(model, 128)
    sweep = sweep_of(root, model, HERE, ONE_PICTURE, "ray")
    (root / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    run = run_sweep("presets", root, TIMEOUT_S)
    print(run.report())
    yield run
    for file in () if kept else root.rglob("*.safetensors"):
        file.unlink()


def test_the_presets_are_all_there() -> None:
    assert {case.method for case in HERE} >= {"esd", "uce", "rece", "mace", "salun", "receler"}
    assert PEAKS.keys() == {f"{case.method} {case.preset}" for case in CASES}


def test_the_whole_stays_within_the_memory(done: Run) -> None:
    assert done.watch.peak_bytes() < LIMIT_BYTES, done.report()


@pytest.mark.parametrize("case", HERE, ids=lambda case: f"{case.method}-{case.preset}")
def test_a_preset_erases_without_nan(done: Run, case: Case) -> None:
    """The stage is recorded: a loss that is not finite would have failed it."""
    cls = registry("unlearner")[case.method].Settings
    settings = cls.model_validate(case.settings(done.home.parent)).full()
    if (case.method, case.preset) in REFUSED:
        assert any("condition number" in str(failure) for failure in done.failures())
        return
    asked = [record for record in done.records() if record["plugin"] == case.method]
    assert settings in [record["settings"]["settings"] for record in asked], (
        f"{done.failures()}\n{done.output[-4000:]}"
    )
