"""What is printed where: other encodings, readers that leave, streams and ports that are taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., str]
RESURGE = [sys.executable, "-m", "orchestrator.cli"]
SWEEP = """
name: words
base: anything
concept: [Ärger, 日本]
edits: [{unlearn: nudge}, {finetune: {dataset: dots, steps: [1, 2]}}]
evaluate: {metrics: [weight_distance, glow]}
"""
pytestmark = pytest.mark.usefixtures("calls")


def test_every_locale_will_do(tmp_path: Path) -> None:
    (tmp_path / "größe.yaml").write_text(SWEEP, "utf-8")
    bare = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for own in ({**bare, "PYTHONIOENCODING": "ascii"}, {**bare, "LC_ALL": "POSIX"}):
        done = subprocess.run(
            [*RESURGE, "plan", "größe.yaml"],
            env={**os.environ, **own},
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"unlearn nudge" in done.stdout


@pytest.mark.parametrize("arguments", [("list",), ("schema",)], ids=" ".join)
def test_a_reader_may_leave(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*RESURGE, *arguments], stdout=writing, stderr=-1, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_stream_may_be_closed_or_full() -> None:
    shell = f"{' '.join(RESURGE)} list"
    closed = subprocess.run(["sh", "-c", f"{shell} >&-"], stderr=-1, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")
    full = subprocess.run(["sh", "-c", f"{shell} >/dev/full"], stderr=-1, text=True, check=False)
    assert full.returncode == 2
    assert full.stderr == "error: No space left on device\n"


def test_a_port_of_anothers_is_said(resurge: Command, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = resurge("ui", "--port", str(port), code=2)
    assert f"port {port} cannot be used (Address already in use): name another by --port" in said
    assert "http" not in said
    for wrong in ("0", "65536", "-1", "x"):
        assert "--port" in resurge("ui", "--port", wrong, code=2)


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("list", "sweeps", "--home", "~nobody-here/x"), ""),
        (("store", "du", "--store", "~nobody-here/x"), ""),
        (("list", "sweeps"), "RESURGE_HOME"),
        (("list", "sweeps"), "RESURGE_STORE"),
        (("ui",), "RESURGE_MLFLOW"),
        (("list",), "RESURGE_PLUGINS"),
        (("status", "mine", "--cluster", "mine"), "RESURGE_CLUSTERS"),
    ],
)
def test_the_home_of_nobody_is_no_place(
    arguments: tuple[str, ...], variable: str, resurge: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        url = "sqlite:///" if variable == "RESURGE_MLFLOW" else ""
        monkeypatch.setenv(variable, f"{url}~nobody-here/x")
    assert "there is no user 'nobody-here' on this machine" in resurge(*arguments, code=2)
