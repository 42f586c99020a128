"""What the command line prints of a sweep: its plan, its state, its outcome, its results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan
from orchestrator.results.settings_table import Form
from orchestrator.run.job import Job
from orchestrator.store.store import Store


def choose_format(
    as_csv: bool,
    as_json: bool,
    times: bool,
    threshold: float | None,
    by: Sequence[str],
    groups: bool = False,
    points: bool = False,
) -> Form | None:
    """What `resurge results` prints in; None for the table.

    Raises:
        ResurgeError: options that do not go together.
    """
    if as_csv and as_json:
        raise ResurgeError("--csv and --json do not go together; give one of them")
    if by and times:
        raise ResurgeError("--by and --time-to-resurgence do not go together; give one of them")
    views = {"--groups": groups, "--points": points, "--time-to-resurgence": times}
    if len(both := [name for name, is_given in views.items() if is_given]) > 1:
        raise ResurgeError(f"{' and '.join(both)} do not go together; give one of them")
    if by and points:
        raise ResurgeError("--by and --points do not go together; give one of them")
    if threshold is not None and not times:
        raise ResurgeError("--threshold is of --time-to-resurgence; give that too")
    if threshold is not None and not math.isfinite(threshold):
        raise ResurgeError(f"--threshold must be a number but got {threshold}")
    return "csv" if as_csv else "json" if as_json else None


def show_results(job: Job, console: Console, by: Sequence[str] = ()) -> None:
    """The table of settings with resurgence, recovery, control and interval.

    With `by`, averaged over all other axes. Of a search, without it, the worst cases.
    """
    if not by and job.is_search:
        from orchestrator.cli.show.worst_cases import show_best_defences, show_worst_cases

        cases, search = job.worst_cases(), job.points.search
        show_worst_cases(cases, console)
        if search.defend is not None:
            show_best_defences(search, cases, console)
    else:
        show_settings(job.plan, job.store, console, by)
        if not by and job.reference is not None:
            from orchestrator.cli.show.reference import show_reference
            from orchestrator.results.settings import aggregate

            show_reference(job.reference, aggregate(job.plan, job.store), console)


def show_settings(
    plan: Plan, store: Store, console: Console, by: Sequence[str] = (), groups: bool = False
) -> None:
    """The table of a grid's settings; with `by`, averaged over all other axes; of their `groups`
    instead.
    """
    from orchestrator.cli.show.settings import render, render_groups
    from orchestrator.results.settings import aggregate, aggregate_by

    summary = aggregate_by(plan, store, by) if by else aggregate(plan, store)
    (render_groups if groups else render)(summary, console)


def show_points(job: Job, console: Console) -> None:
    """The table of every model on the settings' ways."""
    from orchestrator.cli.show.settings import render_points
    from orchestrator.results.chains import chains
    from orchestrator.results.settings import caption

    axes = [axis for axis in job.plan.varying if axis != "seed"]
    render_points(chains(job.plan, job.store), axes, caption(job.plan), console)


def show_times(job: Job, console: Console, threshold: float | None) -> None:
    """The table of times to resurgence."""
    from orchestrator.cli.show.times import render
    from orchestrator.results.times import times_to_resurgence

    render(times_to_resurgence(job.plan, job.store, threshold), console)
