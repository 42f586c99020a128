"""Dockerfiles and shell scripts, as far as that shows without building anything."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SCRIPTS = sorted(DOCKER.glob("*.sh"))
BIN = Path(sys.executable).parent


def lint(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    lint(BIN / "hadolint", "--failure-threshold", "info", path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    lint(BIN / "shellcheck", path)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_an_ordinary_user_under_tini_with_a_health_check(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^USER (.*)$", text, re.M) == ["${UID}"]
    assert 'ENTRYPOINT ["tini", "--", "/opt/resurge/share/entrypoint.sh"]' in text
    assert len(re.findall(r"^HEALTHCHECK ", text, re.M)) == 1
    assert "org.opencontainers.image.licenses" in text
    assert "RAY_AUTH_MODE=token" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_install_is_pinned_by_the_constraints(path: Path) -> None:
    joined = path.read_text().replace("\\\n", " ")
    installs = [line for line in joined.splitlines() if "pip install" in line and line[0] != "#"]
    assert installs
    for line in installs:
        assert "-c constraints.txt" in line or "--no-deps" in line, line


def test_the_images_are_of_one_python_and_one_version() -> None:
    texts = [path.read_text() for path in DOCKERFILES]
    assert len({re.search(r"^ARG PYTHON_IMAGE=(.*)$", text, re.M)[1] for text in texts}) == 1
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert {re.search(r"^ARG VERSION=(.*)$", text, re.M)[1] for text in texts} == {version}


def test_the_requirements_are_in_step_with_pyproject() -> None:
    for path, text in runpy.run_path(str(DOCKER / "requirements.py"))["files"]().items():
        assert path.read_text() == text, f"{path.name}: run python docker/requirements.py"


def test_the_head_asks_for_nothing_that_runs_models() -> None:
    wanted = (DOCKER / "requirements-head.txt").read_text()
    for name in ("torch", "diffusers", "transformers", "accelerate", "peft"):
        assert not re.search(rf"^{name}\b", wanted, re.M)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_in_its_build_context(path: Path) -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(Path(source).match(pattern) for pattern in allowed), source
