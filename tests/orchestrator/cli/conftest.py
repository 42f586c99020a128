"""Commands, run in this process: nothing is imported again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import main as command_line

Command = Callable[..., str]


@pytest.fixture
def resurge(
    calls: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs a command in this process: all that it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["resurge", *arguments])
        try:
            command_line.main()
            got: object = 0
        except SystemExit as end:
            got = end.code or 0
        said = capsys.readouterr()
        printed = said.out + said.err
        assert "Traceback" not in printed
        assert got == code, printed
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", printed)
        return printed

    return run
