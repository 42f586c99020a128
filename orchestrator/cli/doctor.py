"""What `resurge doctor` is asked about, and the table that it prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.config.checks import build, missing
from orchestrator.core.errors import ResurgeError
from orchestrator.core.registry import find, registry

if TYPE_CHECKING:
    from workers.doctor.checks import Check
    from workers.interfaces.base import Base


STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def open_base(name: str, settings: Mapping[str, Any]) -> Base:
    """The base of that name; or `diffusers` with that source and the given settings.

    Raises:
        ResurgeError: the settings are wrong, or the named base cannot do without some.
    """
    if name not in registry("base"):
        return _made("diffusers", {"source": name, **settings})
    if needed := missing(find("base", name).Settings, ()):
        raise ResurgeError(f"base {name!r} needs settings ({', '.join(needed)}); give its source")
    if settings:
        given = ", ".join(settings)
        raise ResurgeError(f"base {name!r} takes none of {given}; they are for diffusers sources")
    return _made(name, {})


def _made(name: str, values: Mapping[str, Any]) -> Base:
    plugin = find("base", name)
    settings, faults = build(plugin.Settings, values)
    if settings is None:
        raise ResurgeError("; ".join(faults))
    return cast("Base", plugin(settings))


def show_checks(checks: Iterable[Check], console: Console) -> None:
    """One line a check."""
    table = Table("check", "", "found", "advice", box=None, pad_edge=False)
    for check in checks:
        mark = Text(check.status, style=STYLES[check.status])
        advice = "" if check.status == "ok" else check.advice
        table.add_row(check.name, mark, Text(check.found), Text(advice))
    console.print(table)
