"""`resurge doctor`: what was checked of a base, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from orchestrator.cli.show.tables import new_table

if TYPE_CHECKING:
    from workers.doctor.checks import Check

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def show_checks(checks: Iterable[Check], console: Console) -> None:
    """One line a check."""
    table = new_table("check", "", "found", "advice")
    for check in checks:
        mark = Text(check.status, style=STYLES[check.status])
        advice = "" if check.status == "ok" else check.advice
        table.add_row(check.name, mark, Text(check.found), Text(advice))
    console.print(table)
