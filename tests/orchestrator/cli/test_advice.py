"""What a run advises finds what it made; what is in the way of its files is said."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.home import Home

Command = Callable[..., str]
SWEEP = """
name: mine
base: tiny
concept: star
edits: [{unlearn: nudge}, {finetune: {dataset: dots, steps: [1], batch_size: 2}}]
evaluate: {metrics: [glow], images_per_prompt: 1, controls: false, retain: []}
resources: {executor: inline}
"""


@pytest.fixture
def folder(tmp_path: Path, resurge: Command) -> Path:
    (tmp_path / "mine.yaml").write_text(SWEEP)
    return tmp_path


def advised(said: str, beginning: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the arguments of a line that was advised."""
    [line] = re.findall(rf"{beginning}: (.*)", said)
    words = shlex.split(line)
    start = words.index("resurge")
    return dict(word.split("=", 1) for word in words[:start]), words[start + 1 :]


def test_the_advice_finds_what_was_made(
    folder: Path, resurge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = resurge(
        "run",
        "mine.yaml",
        "store=other places/the [store]",
        "mlflow=sqlite:///other places/m?.db".replace("?", "%3F"),
        "--home",
        "my home",
    )
    with monkeypatch.context() as patch:
        settings, arguments = advised(said, "Print it again")
        for name, value in settings.items():
            patch.setenv(name, value)
        assert "resurgence" in resurge(*arguments)
    with monkeypatch.context() as patch:
        settings, arguments = advised(said, "Browse it")
        assert arguments == ["ui", "--home", str(folder / "my home")]
        for name, value in settings.items():
            patch.setenv(name, value)
        place = Home.find(Path(arguments[2]))
        assert place.mlflow_uri() == f"sqlite:///{folder}/other places/m%3F.db"
        assert (folder / "other places" / "m?.db").exists()

    in_the_way(folder, resurge)


def in_the_way(folder: Path, resurge: Command) -> None:
    """The same sweep again: a folder of its name, targets that cannot be written, no MLflow."""
    usual = ("store=other places/the [store]", "--home", "my home")
    (folder / "file").touch()
    said = resurge("run", "mine.yaml", "mlflow=sqlite:///file/mlflow.db", *usual)
    assert "resurgence" in said  # the table
    assert "MLflow is behind" in said.replace("\n", " ")
    assert "0 stages ran" in said

    os.environ["RESURGE_STORE"] = "other places/the [store]"
    try:
        resurge("export", "mine", "--to", "mine")
        assert pq.read_table("mine/mine.parquet").num_rows == 1
        assert "resurgence" in resurge("results", "mine")
        (folder / "link").symlink_to("link")
        for target in ("file", "file/below", "link", "/proc/none/x", "/dev/null", "x" * 300):
            said = resurge("export", "mine", "--to", target, code=2)
            assert f"cannot export to {target[:200]}" in said.replace("\n", "")
            assert "Name another with --to" in said
        said = resurge("export", "mine", "--to", "~nobody-here/x", code=2)
        assert "--to: cannot use '~nobody-here/x': there is no user 'nobody-here'" in said
        (folder / "taken" / "mine.csv").mkdir(parents=True)
        assert "cannot export to taken" in resurge("export", "mine", "--to", "taken", code=2)
        assert [p.name for p in (folder / "taken").iterdir()] in (
            ["mine.csv"],
            ["mine.csv", "mine.parquet"],
            ["mine.parquet", "mine.csv"],
        )
    finally:
        del os.environ["RESURGE_STORE"]
