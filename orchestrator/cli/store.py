"""`resurge store`: what a store holds, whether it is sound, and what it can spare."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orchestrator.cli.common import HomeOption, out
from orchestrator.core.text import size_text
from orchestrator.home import Home

if TYPE_CHECKING:
    from orchestrator.store.store import Store
    from orchestrator.upkeep.damage import Damage
    from orchestrator.upkeep.inventory import Amount, Use
    from orchestrator.upkeep.waste import Waste


store_app = typer.Typer(
    help="Look after the store: what it holds, whether it is sound, what it can spare.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="LOCATION",
        help="A folder or s3://bucket/prefix (RESURGE_STORE; default the home's store).",
    ),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@store_app.command()
def du(home: HomeOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show bytes and files by kind of stage, by sweep, and of what is no stage."""
    from orchestrator.upkeep.inventory import use_of

    place, opened = _open(home, store)
    use = use_of(opened, place)
    if as_json:
        print(json.dumps(use.to_json(), indent=2))
    else:
        _show_use(use)


@store_app.command()
def verify(
    home: HomeOption = None,
    store: StoreOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set what is damaged aside, so that its stages run again."),
    ] = False,
) -> None:
    """Hash every object of every record and compare; reads the whole store.

    Exit code 0: all is well; 1: something is damaged; 2: bad input.
    """
    from orchestrator.upkeep.damage import verify as verify_record

    _, opened = _open(home, store)
    keys = sorted(opened.keys())
    damaged = []
    with typer.progressbar(keys, label="Verifying", file=sys.stderr) as bar:
        for key in bar:
            if (damage := verify_record(opened, key, repair)) is not None:
                damaged.append(damage)
    _show_damage(damaged, len(keys), repair)
    raise typer.Exit(1 if damaged else 0)


@store_app.command()
def gc(
    home: HomeOption = None,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only show.")] = False,
    older_than: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Nothing younger: 90s, 30m, 12h, 2d."),
    ] = "1d",
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Also what was set aside as damaged.")
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also all that only this sweep uses, and its name."),
    ] = None,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Also models' weights; they are made again when needed."),
    ] = False,
) -> None:
    """Show what can be deleted without loss, and delete it with --yes.

    That is what killed attempts left behind: objects that no record names, scratch files, training
    states of finished stages, claims of heads that are gone. `--older-than` must be longer than
    the longest stage takes.
    """
    from orchestrator.upkeep.waste import Limits, delete, find_waste, seconds

    place, opened = _open(home, store)
    limits = Limits(seconds(older_than), quarantine, sweep, weights)
    found = find_waste(opened, place, limits)
    _show_waste(found, older_than)
    if found and yes:
        with typer.progressbar(found, label="Deleting", file=sys.stderr) as bar:
            freed_bytes = sum(delete(opened, waste) for waste in bar)
        out.print(f"Deleted: {size_text(freed_bytes)} freed.")
    elif found:
        out.print("Nothing was deleted: --yes does it.")


def _open(home: Path | None, location: str | None) -> tuple[Home, Store]:
    from orchestrator.store.store import Store

    place = Home.find(home)
    return place, Store(location or place.store_location())


def _show_use(use: Use) -> None:
    out.print(f"[bold]{use.location}[/bold]: {use.total.files:,} files, ", end="")
    out.print(size_text(use.total.size_bytes))
    if use.kinds:
        out.print(_table("stages", use.kinds))
    if use.sweeps:
        table = _columns("sweep", "files", "size", "its own")
        for name, amount in use.sweeps.items():
            own = size_text(use.own[name].size_bytes)
            table.add_row(name, f"{amount.files:,}", size_text(amount.size_bytes), own)
        out.print(table)
    for name, why in use.unplanned.items():
        out.print(f"{name}: what it uses is not known: {why}", style="yellow", markup=False)
    if use.rest:
        out.print(_table("beside them", use.rest))


def _table(title: str, amounts: Mapping[str, Amount]) -> Table:
    table = _columns(title, "files", "size")
    for name, amount in amounts.items():
        table.add_row(name, f"{amount.files:,}", size_text(amount.size_bytes))
    return table


def _columns(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False, header_style="bold")
    for title in numbers:
        table.add_column(title, justify="right")
    return table


def _show_damage(damaged: Sequence[Damage], count: int, repair: bool) -> None:
    for damage in damaged:
        where = f" -> {damage.folder}" if damage.folder else ""
        text = f"{damage.kind} {damage.key}: {'; '.join(damage.faults)}{where}"
        out.print(text, style="red", markup=False, soft_wrap=True)
    out.print(f"{count:,} records verified, {len(damaged)} damaged")
    if damaged and repair:
        out.print("They are set aside; run their sweeps again, which makes them again.")
    elif damaged:
        out.print("Nothing was changed: --repair sets them aside, so that they run again.")


def _show_waste(found: Sequence[Waste], older_than: str) -> None:
    table = _columns("what", "files", "size")
    for what in dict.fromkeys(waste.what for waste in found):
        some = [waste for waste in found if waste.what == what]
        files = sum(len(waste.entries) for waste in some)
        table.add_row(what, f"{files:,}", size_text(sum(waste.size_bytes for waste in some)))
    if found:
        out.print(table)
        out.print(f"Together {size_text(sum(waste.size_bytes for waste in found))}.", end=" ")
    else:
        out.print("Nothing to delete.", end=" ")
    out.print(f"What is younger than {older_than} stays.")
