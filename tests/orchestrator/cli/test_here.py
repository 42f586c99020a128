"""Nothing is imported from the folder in which the user stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
POISON = """
from pathlib import Path
Path({told!r}).open("a").write(__name__ + chr(10))
raise ImportError("taken from the user's folder")
"""
NAMES = (
    "sitecustomize", "usercustomize", "pathlib", "socket", "pickle", "json", "multiprocessing",
    "numpy", "torch", "ray", "psutil", "typer", "rich", "pydantic", "workers",
)  # fmt: skip

SCRIPT = """
import sys
from orchestrator.cli.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
"""What pip installs as `resurge`."""

SPAWNING = """
import multiprocessing, os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from orchestrator.cli.here import leave_out_this_folder

if __name__ == "__main__":
    leave_out_this_folder()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=print, args=("spawned",))
    process.start()
    process.join()
    with ProcessPoolExecutor(1, context) as pool:
        pool.submit(print, "pooled").result()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    sys.exit(process.exitcode)
"""
"""As training on several GPUs and executors with process pools start theirs."""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that names each module that was taken from the working directory."""
    here, told = tmp_path / "here", tmp_path / "told"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(POISON.format(told=str(told)))
    monkeypatch.chdir(here)
    return told


def python(*words: str, path: str) -> None:
    environment = {"PYTHONPATH": path, "PATH": str(Path(sys.executable).parent), "HOME": "/"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_command_as_a_module(told: Path) -> None:
    python("-m", "orchestrator.cli", "--help", path=str(ROOT))
    assert not told.exists(), told.read_text()


@pytest.mark.parametrize("code", [SCRIPT, SPAWNING])
@pytest.mark.parametrize("path", ["{}", "{}:/none", "/none:{}"])
def test_the_installed_command_and_what_it_starts(
    told: Path, tmp_path: Path, code: str, path: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    python(str(script), *(["--help"] if code is SCRIPT else []), path=path.format(ROOT))
    assert not told.exists(), told.read_text()


def test_an_empty_entry_of_pythonpath_means_nothing(told: Path, tmp_path: Path) -> None:
    """`PYTHONPATH=$PYTHONPATH:/more` with an empty variable: to Python the working directory. What
    it loads before anybody is asked (sitecustomize, what it needs to start) is its own affair.
    """
    for name in set(NAMES) - {"numpy", "typer", "rich", "pydantic", "workers", "ray", "torch"}:
        Path(f"{name}.py").unlink()
    for code in (SCRIPT, SPAWNING):
        script = tmp_path / "script.py"
        script.write_text(code)
        words = ["--help"] if code is SCRIPT else []
        python(str(script), *words, path=f":{ROOT}")
    assert not told.exists(), told.read_text()


def test_what_the_user_names_is_searched(tmp_path: Path) -> None:
    """PYTHONPATH may name the working directory: that is said, not stood in."""
    (tmp_path / "mine.py").write_text("")
    script = tmp_path / "script.py"
    script.write_text(
        "from orchestrator.cli.here import leave_out_this_folder\n"
        "leave_out_this_folder()\n"
        "import mine\n"
    )
    for path in (f"{tmp_path}:{ROOT}", f":{tmp_path}:{ROOT}"):
        done = subprocess.run(
            [sys.executable, "-P", str(script)],
            env={"PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
