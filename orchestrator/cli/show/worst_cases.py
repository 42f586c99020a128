"""What the command line prints of a search: its space, and the worst case by study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console

from orchestrator.cli.show.screen import bold
from orchestrator.cli.show.tables import new_table, print_whole, score
from orchestrator.study.defence import best_defences, group_of, value_of
from orchestrator.study.tried import Tried, in_order
from orchestrator.study.words import (
    budget_text,
    counted_seeds,
    goals_text,
    point_text,
    setting_text,
    values_text,
    when_text,
)
from orchestrator.study.worst_case import COVERAGE_RADIUS, Confirmed, WorstCase, missed
from orchestrator.sweep.search import Search
from orchestrator.sweep.space import Space
from orchestrator.sweep.sweep import Sweep


def show_space(sweep: Sweep, search: Search, console: Console) -> None:
    """The goals, the bounds, the space, and the budget."""
    console.print(bold(sweep.name, f": {goals_text(search.goals)}"), soft_wrap=True)
    for bounds in search.bounds:
        if bounds:
            text = ", ".join(f"{bound.name} {bound}" for bound in bounds)
            console.print(f"  subject to {text}", soft_wrap=True)
    if search.aggregate is not None:
        named = ", ".join(search.aggregate.axes)
        console.print(f"  every setting measured on all of {named}; its value is their ", end="")
        console.print("largest" if search.aggregate.how == "max" else "mean")
    if search.subject_to and search.settings.sampler == "cmaes":
        console.print("  cmaes learns nothing from bounds; they decide on the worst case only")
    _show_dimensions(search.space, console)
    if search.defend is not None:
        sought = ", ".join(f"{bound.name} {bound}" for bound in search.defend.subject_to)
        limits = f", subject to {sought}" if sought else ""
        trials = search.defend.settings.trials
        console.print(
            f"the least worst case of {trials} defences, each with a search of its own{limits}:",
            soft_wrap=True,
        )
        _show_dimensions(search.defend.space, console)
    for fixed in search.studies(sweep.grid):
        space = search.space.within(fixed)
        size = "settings on no grid" if space.size is None else f"{space.size:,} settings"
        name = ", ".join(str(value) for value in fixed.values()) or "all"
        console.print(f"  {name}: {size}, {budget_text(search)}")
    console.print(
        f"{counted_seeds(len(sweep.seeds))} a trial; sampler {search.settings.sampler}, pruner "
        f"{search.settings.pruner}; the best {search.confirm.top} confirmed on "
        f"{search.confirm.seeds} fresh seeds"
    )


def _show_dimensions(space: Space, console: Console) -> None:
    table = new_table("setting", "values", "where")
    for dimension in space.dimensions:
        table.add_row(dimension.name, values_text(dimension), when_text(dimension))
    print_whole(table, console)


def show_best_defences(search: Search, found: Sequence[WorstCase], console: Console) -> None:
    """The settings of the unlearner whose worst case is the least bad, by `for_each`."""
    assert search.defend is not None
    tried = Counter(group_of(search, case.fixed) for case in found)
    for case in best_defences(search, found):
        group, value = group_of(search, case.fixed), value_of(case)
        where = point_text(case.fixed, search.defend.space.within({}))
        console.print(
            f"{group or 'all'}: the best of {tried[group]} defences is {where}; its worst "
            f"{search.goals[0].name} is {value:.2f}",
            soft_wrap=True,
        )


def show_worst_cases(found: Sequence[WorstCase], console: Console) -> None:
    """A row a study, over what was tried and how much of the space it covers."""
    if not found:
        console.print("no study has begun")
        return
    goal = found[0].goals[0]
    sheet = new_table()
    for name in ("study", "worst settings"):
        sheet.add_column(name, no_wrap=True)
    shown = ("searched", f"confirmed {goal.name}", "unlearned", "control", "retained")
    for name in (*shown, "seeds", "trials", "covered"):
        sheet.add_column(name, justify="right", no_wrap=True)
    flags = [", ".join(case.worst.setting.flags()) if case.worst else "" for case in found]
    if any(flags):
        sheet.add_column("", style="yellow", no_wrap=True)
    for case, flag in zip(found, flags, strict=True):
        sheet.add_row(*_cells(case), *([flag] if any(flags) else []))
    print_whole(sheet, console)
    seeds = next((f"{c.setting.planned} " for case in found for c in case.confirmed), "")
    note = (
        f"searched: the largest figure of the search, too large by chance; confirmed: the same "
        f"settings on {seeds}fresh seeds, mean and 95% interval; covered: the share of the space "
        f"within {COVERAGE_RADIUS:.0%} of every range of a tried point"
    )
    console.print(note, style="dim", soft_wrap=True, highlight=False)
    for warning in _warnings(found):
        console.print(warning, style="yellow", soft_wrap=True, highlight=False)


def _cells(case: WorstCase) -> list[str]:
    ends = [str(len(in_order(case.trials))), f"{case.coverage:.0%}"]
    if (worst := case.worst) is None:
        return [case.title, *["–"] * 7, *ends]
    goal = worst.goal
    return [
        case.title,
        setting_text(worst, case.space),
        f"{worst.searched:.2f}",
        f"{goal.value:.2f} [{goal.low:.2f}, {goal.high:.2f}]" if goal else "–",
        score(worst.setting.unlearned),
        score(worst.setting.control),
        score(worst.setting.retained),
        worst.setting.seeds,
        *ends,
    ]


def _warnings(found: Sequence[WorstCase]) -> Iterator[str]:
    for case in found:
        yield from _why_unconfirmed(case)
        constant = sum(one.setting.pictures.constant for one in case.confirmed)
        if constant:
            total = sum(one.setting.pictures.count for one in case.confirmed)
            yield (
                f"{case.name}: {constant} of {total} pictures of the confirmed settings are of one "
                "colour (black, say): a metric takes them for pictures without the concept"
            )
        if case.to_come > 0 and case.bounds == found[0].bounds:
            budget = case.to_come + len(in_order(case.trials))
            yield f"{case.name}: {case.to_come} of {budget} trials to come"


def _why_unconfirmed(case: WorstCase) -> Iterator[str]:
    """Nothing if there is a worst case, or may still be one."""
    if case.worst is not None or case.count("running") or not case.trials:
        return
    ran, failed = len(case.measured), case.count("failed")
    if case.confirmed:
        yield f"{case.title}: none of the best settings kept every bound on fresh seeds"
        yield from _misses(case, [one for one in case.confirmed if one.goal is not None])
        if lost := sum(one.goal is None for one in case.confirmed):
            yield f"  no value on fresh seeds: {lost} of {len(case.confirmed)}"
    elif case.has_candidates:
        yield f"{case.title}: nothing is confirmed: search.confirm.top is 0"
    elif ran:
        yield (
            f"{case.title}: nothing to confirm: no setting kept every bound ({ran} ran to the end, "
            f"{failed} failed)"
        )
        yield from _misses(case, case.measured)
        yield "  loosen search.subject_to or widen search.space, under another `name`"
    else:
        why = next((f"; the first: {t.reason}" for t in case.trials if t.reason), "")
        yield f"{case.title}: nothing to confirm: no setting ran to the end ({failed} failed{why})"


def _misses(case: WorstCase, settings: Sequence[Tried | Confirmed]) -> Iterator[str]:
    """'  retained_accuracy >= 0.7: missed by 8 of 9; the nearest was 0.41, 0.29 too low'."""
    total = len(settings)
    for one in missed(case.bounds, settings):
        many = f"all {total}" if one.count == total else f"{one.count} of {total}"
        if one.is_ruined:
            yield f"  unlearning took more than half of what should have stayed: {many}"
            continue
        if one.bound is None or one.nearest is None:
            yield f"  unlearning took too little away for anything to come back: {many}"
            continue
        bound, side = one.bound, "low" if one.bound.at_least else "high"
        yield (
            f"  {bound.name} {bound}: missed by {many}; the nearest was {one.nearest:.3g}, "
            f"{one.gap:.2g} too {side}"
        )
