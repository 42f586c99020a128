"""Workers that come and go on a real Ray cluster that others use as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
