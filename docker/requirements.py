"""Writes requirements-head.txt and requirements-worker.txt from pyproject.toml.

Run `python docker/requirements.py` after a change of the dependencies; a test says when they are
out of step. Versions are not chosen here: both images install with constraints.txt.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = "# Written by docker/requirements.py from pyproject.toml.\n"
WORKERS_ONLY = {"accelerate", "diffusers", "peft", "safetensors", "torch", "transformers"}
"""What runs models. The head plans, schedules and serves, and needs none of it."""

HEAD_EXTRAS = ("postgresql", "servers")
WORKER_EXTRAS = ("hub", "faces")


def name_of(requirement: str) -> str:
    """`ray[default]>=2.50` -> `ray`."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def requirements(extras: tuple[str, ...], without: set[str]) -> str:
    """The project's dependencies and those extras, one a line, sorted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    lines = sorted({line for line in wanted if name_of(line) not in without})
    return HEADER + "".join(f"{line}\n" for line in lines)


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    folder = ROOT / "docker"
    return {
        folder / "requirements-head.txt": requirements(HEAD_EXTRAS, WORKERS_ONLY),
        folder / "requirements-worker.txt": requirements(WORKER_EXTRAS, {"torch"}),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
