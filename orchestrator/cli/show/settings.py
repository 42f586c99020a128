"""The table of settings: resurgence with its interval, and what to compare it with."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from orchestrator.cli.show.tables import axis_cells, header, new_table, print_whole, score
from orchestrator.results.settings import Aggregate, Summary


def render(summary: Summary, console: Console) -> None:
    """Print the settings that fine-tune, over a line that says what was measured, and warnings.

    A resurgence in bold is beyond chance (`Aggregate.is_clear`). No number is cut off where the
    console is narrow; its lines wrap.
    """
    flags = [", ".join(setting.flags()) for setting in summary.shown]
    sheet = new_table()
    for axis in summary.axes:
        sheet.add_column(header(axis, summary.axes), no_wrap=True)
    sheet.add_column("seeds", justify="right", no_wrap=True)
    scores = ("base", "un-\nlearned", "final", "resurgence", "p_holm", "re-\ncovery", "control")
    for name in (*scores, "retained", "never\nknown"):
        sheet.add_column(name, justify="right", no_wrap=True)
    if any(flags):
        sheet.add_column("", style="yellow", no_wrap=True)
    for setting, flag in zip(summary.shown, flags, strict=True):
        cells = [*axis_cells(setting.params, summary.axes), *_number_cells(setting)]
        sheet.add_row(*cells, *([flag] if any(flags) else []))
    print_whole(sheet, console)
    console.print(summary.caption, style="dim", soft_wrap=True, highlight=False)
    for warning in summary.warnings():
        console.print(warning, style="yellow", soft_wrap=True, highlight=False)


def _number_cells(setting: Aggregate) -> list[str | Text]:
    paired = setting.paired
    back = paired.resurgence if paired else None
    share = paired.recovery if paired else None
    p = setting.p_holm
    back_cell: str | Text = "–"
    if back:
        style = "bold" if setting.is_clear else ""
        interval = f" [{back.low:.2f}, {back.high:.2f}]"
        back_cell = Text.assemble((f"{back.value:+.2f}", style), interval)
    seeds: str | Text = setting.seeds
    if setting.seeds_scored < setting.seeds_planned:
        seeds = Text(setting.seeds, "yellow")
    return [
        seeds,
        score(setting.base),
        score(setting.unlearned),
        score(setting.final),
        back_cell,
        "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
        f"{share.value:.0%}" if share else "–",
        score(setting.control),
        score(setting.retained),
        score(setting.never_known),
    ]
