"""A sweep full of `../../`: nothing is written outside the home folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from orchestrator.cli.main import app

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("calls")]

ESCAPE = "../../escaped"

SWEEP: dict[str, Any] = {
    "name": "small",
    "base": "tiny",
    "concept": "star",
    "edits": [
        {"unlearn": {"nudge": {"amount": 0.01}}},
        {"finetune": {"dataset": "dots", "adapter": "full", "steps": 1, "batch_size": 2}},
    ],
    "evaluate": {"metrics": ["glow"], "images_per_prompt": 1, "retain": ["heart"]},
    "keep": ["unlearned", "finetuned"],
    "resources": {"executor": "inline"},
    "store": "store",
    "mlflow": "sqlite:///mlflow.db",
}


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all strings, keys too: a key's path ends with itself twice."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path and path[-1] in ("unlearn", "nudge"):
                yield (*path, key, key)
            yield from strings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, (*path, index))
    elif isinstance(value, str):
        yield path


def escaping(path: tuple[Any, ...]) -> dict[str, Any]:
    """The sweep with `../../` there."""
    made = copy.deepcopy(SWEEP)
    *way, last = path
    inner: Any = made
    for key in way[:-1] if way and way[-1] == last else way:
        inner = inner[key]
    if way and way[-1] == last:
        inner[ESCAPE] = inner.pop(last)
    else:
        inner[last] = f"sqlite:///{ESCAPE}.db" if last == "mlflow" else ESCAPE
    return made


# Where results go is the user's own choice: these two name places on purpose.
PLACES = {("store",), ("mlflow",)}


@pytest.mark.parametrize(
    "path", [p for p in strings(SWEEP) if p not in PLACES], ids=lambda p: ".".join(map(str, p))
)
def test_a_name_cannot_leave_the_home_folder(
    path: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "a" / "b" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    with (work / "sweep.yaml").open("w") as stream:
        YAML(typ="safe").dump(escaping(path), stream)
    result = CliRunner().invoke(app, ["run", "sweep.yaml", "--home", "home"])
    outside = {p for p in tmp_path.rglob("*") if p.is_file()} - set((work / "home").rglob("*"))
    outside -= set((work / "store").rglob("*"))
    names = {p.relative_to(tmp_path).as_posix() for p in outside}
    assert names <= {"a/b/work/sweep.yaml", "a/b/work/mlflow.db", "calls.txt"}, result.output
