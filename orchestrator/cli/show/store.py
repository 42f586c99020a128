"""`resurge store`: what it holds, what is damaged, what it can spare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from orchestrator.cli.show.screen import bold
from orchestrator.cli.show.tables import new_table
from orchestrator.core.text import size_text
from orchestrator.upkeep.damage import Damage
from orchestrator.upkeep.inventory import Amount, Use
from orchestrator.upkeep.waste import Waste


def show_use(use: Use, console: Console) -> None:
    """Bytes and files by kind of stage, by sweep, and of what is no stage."""
    console.print(bold(use.location, f": {use.total.files:,} files, "), end="")
    console.print(size_text(use.total.size_bytes))
    if use.kinds:
        console.print(_amounts("stages", use.kinds))
    if use.sweeps:
        table = new_table("sweep", right=["files", "size", "its own"])
        for name, amount in use.sweeps.items():
            own = size_text(use.own[name].size_bytes)
            table.add_row(name, f"{amount.files:,}", size_text(amount.size_bytes), own)
        console.print(table)
    for name, why in use.unplanned.items():
        console.print(f"{name}: what it uses is not known: {why}", style="yellow")
    if use.rest:
        console.print(_amounts("beside them", use.rest))


def show_damage(
    damaged: Sequence[Damage], records: int, others: int, repair: bool, console: Console
) -> None:
    """Each damaged one of so many records and other documents, and what became of it."""
    for damage in damaged:
        where = f" -> {damage.folder}" if damage.folder else ""
        text = f"{damage.kind} {damage.key}: {'; '.join(damage.faults)}{where}"
        console.print(text, style="red", soft_wrap=True)
    console.print(
        f"{records:,} records and {others:,} other documents verified, {len(damaged)} damaged"
    )
    if damaged and repair:
        console.print("They are set aside; run their sweeps again, which makes them again.")
    elif damaged:
        console.print("Nothing was changed: --repair sets them aside, so that they are made again.")


def show_waste(found: Sequence[Waste], older_than: str, console: Console) -> None:
    """What could be deleted, by sort."""
    amounts: dict[str, Amount] = {}
    for waste in found:
        amounts[waste.what] = amounts.get(waste.what, Amount()) + Amount.of(waste.entries)
    if found:
        console.print(_amounts("what", amounts))
        total = sum(amount.size_bytes for amount in amounts.values())
        console.print(f"Together {size_text(total)}.", end=" ")
    else:
        console.print("Nothing to delete.", end=" ")
    console.print(f"What is younger than {older_than} stays.")


def _amounts(title: str, amounts: Mapping[str, Amount]) -> Table:
    table = new_table(title, right=["files", "size"])
    for name, amount in amounts.items():
        table.add_row(name, f"{amount.files:,}", size_text(amount.size_bytes))
    return table
