"""`resurge search --save`: the worst settings as a sweep file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.common import out
from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import one_line
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import as_text, parse

if TYPE_CHECKING:
    from orchestrator.study.worst_case import WorstCase

FIRST_LINE = "# The worst settings that `resurge search` found"
LONGEST_LINE = 160


def refuse_others_file(path: Path) -> None:
    """Only what was saved before is written over.

    Raises:
        ResurgeError: it is another file, or there is no such folder.
    """
    if not path.parent.is_dir():
        raise ResurgeError(f"--save: there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise ResurgeError(f"--save: {str(path)!r} is a folder; name a file in it")
    if path.exists() and not path.read_bytes().startswith(FIRST_LINE.encode()):
        raise ResurgeError(f"--save: {str(path)!r} is there already and was not saved by a search")


def save_worst(sweep: Sweep, cases: Sequence[WorstCase], path: Path) -> None:
    """Write the sweep that runs every method of the search on every worst setting.

    Raises:
        ResurgeError: there is no worst case.
    """
    from orchestrator.search.worst_sweep import about, worst_sweep

    lines = [
        f"{FIRST_LINE} for sweep {sweep.name}:",
        *(f"#   {one_line(about(case), LONGEST_LINE)}" for case in cases),
        "# Each is run on every method and concept of that search. Other ones, or another base:",
        f"#   resurge run {path.name} unlearn=[...] base=...",
    ]
    text = "\n".join([*lines, as_text(worst_sweep(sweep, cases))])
    parse(text, str(path))  # what is written can be read
    path.write_text(text, encoding="utf-8")
    out.print(f"Saved: {path}", soft_wrap=True)
