"""`resurge store`: what a store holds, whether it is sound, and what it can spare."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.common import HomeOption, out, write
from orchestrator.core.errors import StoreError
from orchestrator.core.places import store_place
from orchestrator.core.text import size_text
from orchestrator.home import Home

if TYPE_CHECKING:
    from orchestrator.store.store import Store


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
    from orchestrator.cli.show.store import show_use
    from orchestrator.upkeep.inventory import use_of

    place, opened = _open(home, store)
    use = use_of(opened, place)
    if as_json:
        write(json.dumps(use.to_json(), indent=2) + "\n")
    else:
        show_use(use, out)


@store_app.command()
def verify(
    home: HomeOption = None,
    store: StoreOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set what is damaged aside, so that its stages run again."),
    ] = False,
) -> None:
    """Check every document's own checksum, and hash every object; reads the whole store.

    Exit code 0: all is well; 1: something is damaged; 2: bad input.
    """
    from orchestrator.cli.show.store import show_damage
    from orchestrator.upkeep.damage import others, verify_other
    from orchestrator.upkeep.damage import verify as verify_record

    _, opened = _open(home, store)
    keys = sorted(opened.keys())
    paths = others(opened)
    checks = [partial(verify_record, opened, key, repair) for key in keys]
    checks += [partial(verify_other, opened, path, repair) for path in paths]
    with typer.progressbar(checks, label="Verifying", file=sys.stderr) as bar:
        damaged = [damage for check in bar if (damage := check()) is not None]
    show_damage(damaged, len(keys), len(paths), repair, out)
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
    from orchestrator.cli.show.store import show_waste
    from orchestrator.upkeep.waste import Limits, delete, find_waste, seconds

    place, opened = _open(home, store)
    limits = Limits(seconds(older_than), quarantine, sweep, weights)
    found = find_waste(opened, place, limits)
    show_waste(found, older_than, out)
    if found and yes:
        with typer.progressbar(found, label="Deleting", file=sys.stderr) as bar:
            freed_bytes = sum(delete(opened, waste) for waste in bar)
        out.print(f"Deleted: {size_text(freed_bytes)} freed.")
    elif found:
        out.print("Nothing was deleted: --yes does it.")


def _open(home: Path | None, location: str | None) -> tuple[Home, Store]:
    from orchestrator.store.store import Store

    place = Home.find(home)
    opened = Store(store_place(location, "--store") if location else place.store_location())
    if not opened.files.has_any():
        raise StoreError(
            f"there is no store at {opened.location}: --store names another place, or --home "
            "another home; `resurge run` makes one"
        )
    return place, opened
