"""Every file in tests/bad_sweeps is refused with exactly the problems that it expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.sweepfile.load import load

FOLDER = Path(__file__).parents[2] / "bad_sweeps"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def expected(path: Path) -> list[str]:
    """The beginnings of the problems, from the file's leading comments."""
    lines = path.read_text().splitlines()
    return [line.removeprefix("# expect: ") for line in lines if line.startswith("# expect: ")]


def test_there_are_many_bad_sweeps() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_says_what_is_wrong_and_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.delenv("RESURGE_PLUGINS", raising=False)
    with pytest.raises(SweepError) as caught:
        load(Path(name))
    found = [str(problem) for problem in caught.value.problems]
    wanted = expected(FOLDER / name)
    assert len(found) == len(wanted), found
    for problem, beginning in zip(found, wanted, strict=True):
        assert problem.startswith(beginning)
        assert str(caught.value).count(problem) == 1
