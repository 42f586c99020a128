"""The tables of settings: resurgence with its interval, and what to compare it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from orchestrator.cli.show.tables import axis_cells, header, new_table, print_whole, score
from orchestrator.core.artifacts import KEPT, Role
from orchestrator.core.errors import ResurgeError
from orchestrator.results.chains import Chain
from orchestrator.results.groups import Group
from orchestrator.results.settings import Aggregate, Summary
from orchestrator.stats.paired import Estimate

KEPT_TITLES: Mapping[Role, str] = {"retained": "retained", "other": "others", "related": "related"}
GROUP_TITLES: Mapping[Role, str] = {
    **KEPT_TITLES, "synonym": "synonyms", "never_known": "never known",
}  # fmt: skip
MOST_CONCEPTS = 6
"""Of how many concepts that are erased together each has a column of points."""


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
    beside = _groups_shown(summary)
    for name in (*scores, *beside.values(), KEPT_TITLES[summary.kept], "never\nknown"):
        sheet.add_column(name, justify="right", no_wrap=True)
    if any(flags):
        sheet.add_column("", style="yellow", no_wrap=True)
    for setting, flag in zip(summary.shown, flags, strict=True):
        cells = [*axis_cells(setting.params, summary.axes), *_number_cells(setting)]
        cells += [_group_cell(setting, name) for name in beside]
        cells += [score(setting.retained), score(setting.never_known)]
        sheet.add_row(*cells, *([flag] if any(flags) else []))
    print_whole(sheet, console)
    console.print(summary.caption, style="dim", soft_wrap=True, highlight=False)
    for warning in summary.warnings():
        console.print(warning, style="yellow", soft_wrap=True, highlight=False)


def render_groups(summary: Summary, console: Console) -> None:
    """Print each setting's groups: the erased concepts one by one, synonyms, related and others.

    Raises:
        ResurgeError: its evaluation set has no such rows.
    """
    if not any(setting.groups for setting in summary.shown):
        raise ResurgeError(
            "there are no groups to show: what was asked has neither synonyms nor concepts that "
            "should survive, and one erased concept; name a set that has (evaluate: {set: …})"
        )
    sheet = new_table()
    for axis in summary.axes:
        sheet.add_column(header(axis, summary.axes), no_wrap=True)
    sheet.add_column("group", no_wrap=True)
    for name in ("base", "un-\nlearned", "final", "resurgence", "re-\ncovery", "lost"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for setting in summary.shown:
        for one in setting.groups:
            share = one.paired.recovery
            means = [score(one.base), score(one.unlearned), score(one.final)]
            numbers = [_estimate(one.paired.resurgence), f"{share.value:.0%}" if share else "–"]
            cells = [*axis_cells(setting.params, summary.axes), one.group.name, *means, *numbers]
            sheet.add_row(*cells, _estimate(one.lost))
    print_whole(sheet, console)
    console.print(summary.caption, style="dim", soft_wrap=True, highlight=False)
    note = "lost: base − unlearned, what unlearning took; of other concepts the interference"
    console.print(note, style="dim", soft_wrap=True, highlight=False)


def render_points(
    found: Sequence[Chain], axes: Sequence[str], caption: str, console: Console
) -> None:
    """Print a row a model, in the order in which they are made, controls last.

    Raises:
        ResurgeError: no model has a score yet.
    """
    groups = dict.fromkeys(group for chain in found for p in chain.points for group in p.scores)
    if not groups:
        raise ResurgeError("there are no points to show: no model has a score yet")
    names = {name for chain in found for name in chain.params}
    axes = [axis for axis in axes if axis in names]
    concepts = [group for group in groups if group.role == "erased" and group.concept is not None]
    shown = [group for group in groups if group.concept is None]
    shown[1:1] = concepts if len(concepts) <= MOST_CONCEPTS else []
    sheet = new_table()
    for title in (*(header(axis, axes) for axis in axes), "", "model"):
        sheet.add_column(title, no_wrap=True)
    for group in shown:
        sheet.add_column(_group_title(group), justify="right", no_wrap=True)
    for chain in found:
        for row in _point_rows(chain, shown):
            sheet.add_row(*axis_cells(chain.params, axes), *row)
    print_whole(sheet, console)
    console.print(caption, style="dim", soft_wrap=True, highlight=False)
    for note in _point_notes(found, concepts):
        console.print(note, style="dim", soft_wrap=True, highlight=False)


def _point_rows(chain: Chain, groups: Sequence[Group]) -> Iterator[list[str]]:
    for point in chain.points:
        number = str(point.passage.position)
        cells = ["control " + number if chain.is_control else number, point.passage.name]
        for group in groups:
            one = point.scores.get(group)
            cells.append("–" if one is None else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]")
        yield cells


def _group_title(group: Group) -> str:
    return group.concept or GROUP_TITLES.get(group.role, group.role)


def _point_notes(found: Sequence[Chain], concepts: Sequence[Group]) -> Iterator[str]:
    if len(concepts) > MOST_CONCEPTS:
        yield f"each of the {len(concepts)} erased concepts: --csv or --json"
    if any(point.passage.aside for chain in found for point in chain.points):
        yield "alone: erased from the same model by itself; what that changed is added in the next"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


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
    ]


def _groups_shown(summary: Summary) -> dict[str, str]:
    """The columns' titles of what is measured beside the erased concept, where a set asks for it:
    `resurge results NAME --groups` has all of their numbers.
    """
    names = {one.group.role for s in summary.shown for one in s.groups if one.group.concept is None}
    shown = {"synonym": "synonyms"} if "synonym" in names else {}
    shown |= {"related": "related"} if "related" in names and summary.kept != "related" else {}
    kept = summary.kept in names and summary.kept != "retained"
    shown |= {"lost": f"{KEPT_TITLES[summary.kept]}\nlost"} if kept else {}
    return shown | ({"worst": "worst\nof the set"} if any(s.worst for s in summary.shown) else {})


def _group_cell(setting: Aggregate, name: str) -> str:
    """A group's final score; what unlearning took of the others; the worst concept of a set."""
    if name == "worst":
        worst = setting.worst if setting.is_tuned else None
        return f"{worst.paired.resurgence.value:+.2f} {worst.group.concept}" if worst else "–"
    if name == "lost":
        of = next((g for role in KEPT if (g := setting.of_role(role))), None)
        return f"{of.lost.value:+.2f}" if of else "–"
    group = setting.of_role("synonym" if name == "synonym" else "related")
    return score(group.final if group else None)
