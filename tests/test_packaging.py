"""What is installed elsewhere: the wheel has everything that runs, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as pip would; built aside, where no earlier build left anything."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("orchestrator", "workers"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, source]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_both_packages_and_the_bundled_model(installed: Path) -> None:
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"orchestrator", "workers"}
    inside = {path.relative_to(installed).as_posix() for path in installed.rglob("*")}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("orchestrator", "workers")
        for path in (ROOT / package).rglob("*.py")
        if "making" not in path.parts
    }
    assert ours <= inside
    assert "workers/shapes/weights/pipeline/unet/diffusion_pytorch_model.safetensors" in inside
    assert "orchestrator/py.typed" in inside


def test_how_the_bundled_model_was_made_is_not_installed(installed: Path) -> None:
    assert not [path for path in installed.rglob("*") if "making" in path.parts]


def test_the_wheel_alone_plans_and_loads_the_bundled_model(installed: Path, tmp_path: Path) -> None:
    code = (
        "from workers.bases.shapes import Shapes; import workers\n"
        "assert workers.__file__.startswith(__import__('sys').argv[1])\n"
        "print(Shapes(Shapes.Settings()).load('cpu').unet.config.cross_attention_dim)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    plan = [sys.executable, "-P", "-m", "orchestrator.cli", "plan", ROOT / "sweeps/quickstart.yaml"]
    for command, said in (([sys.executable, "-P", "-c", code, installed], "64"), (plan, "naive")):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
