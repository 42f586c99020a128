"""The table of times to resurgence."""

from __future__ import annotations

from rich.console import Console

from orchestrator.cli.show.tables import axis_cells, header, new_table, print_whole
from orchestrator.core.text import number
from orchestrator.results.times import SettingTimes, Times


def render(times: Times, console: Console) -> None:
    """Print each setting's times and its Kaplan-Meier curve, over what they mean."""
    sheet = new_table()
    for axis in times.axes:
        sheet.add_column(header(axis, times.axes), no_wrap=True)
    for name in ("back", "median", "steps of each seed", "still gone after"):
        sheet.add_column(name, no_wrap=True)
    for setting in times.settings:
        sheet.add_row(*axis_cells(setting.params, times.axes), *_cells(setting))
    print_whole(sheet, console)
    level = "halfway from the unlearned score to the base's"
    if times.threshold is not None:
        level = number(times.threshold)
    note = (
        f"back: final score at or above {level} · 50–100: between these steps, as only the sweep's "
        "step counts are looked at · >100: not by 100 (censored) · Kaplan-Meier over seeds, "
        "95% intervals: Greenwood, log-log"
    )
    console.print(note, style="dim", soft_wrap=True, highlight=False)


def _cells(setting: SettingTimes) -> tuple[str, str, str, str]:
    if not setting.times:
        return "–", "–", setting.left_out, "–"
    back = sum(time.happened for time in setting.times)
    last = max(time.steps for time in setting.times)
    left_out = f" ({setting.left_out})" if setting.left_out else ""
    return (
        f"{back} of {len(setting.times)}",
        f">{last}" if setting.median is None else str(setting.median),
        ", ".join(map(str, setting.times)) + left_out,
        ", ".join(
            f"{point.steps}: {point.share:.2f} [{point.low:.2f}, {point.high:.2f}]"
            for point in setting.curve
        ),
    )
