"""Workers that come and go on a real Ray cluster that others use as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.executors.joining import check
from tests.integration.elastic_driver import GPUS, SCENES
from tests.integration.ray_head import RayHead, ray_head

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """It says that it has GPUs."""
    with ray_head(tmp_path_factory.mktemp("elastic"), gpus=GPUS) as started:
        yield started


@pytest.mark.parametrize("scene", SCENES)
def test_workers(head: RayHead, scene: str) -> None:
    ray = {"RAY_ADDRESS": head.gcs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
    command = [sys.executable, "-m", "tests.integration.elastic_driver", scene]
    done = subprocess.run(
        command, env={**os.environ, **ray}, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_with_another_token_it_is_said_at_once(head: RayHead) -> None:
    """Ray's own words name neither the variable nor the address."""
    ray = {"RAY_ADDRESS": head.gcs, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", f"from {check.__module__} import check; check({head.gcs!r})"],
        env={**os.environ, **ray},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stderr.splitlines()[-1]
    assert f"RAY_ADDRESS is {head.gcs!r}, and that cluster cannot be joined: " in said
    assert "Authentication token is missing or incorrect" in said
