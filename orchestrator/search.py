"""The worst case: which settings within a space bring the most back, confirmed on fresh seeds.

`run` searches, or goes on with a search; docs/search.md shows it in a notebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.plan import Plan
from orchestrator.read_search import studies
from orchestrator.run import (
    Job,
    is_synced,
    live_tracking,
    new_executor,
    new_leases,
    new_scheduler,
    say_behind,
    sync_job,
)
from orchestrator.search_plan import Points
from orchestrator.searcher import Searcher, open_studies, study_name
from orchestrator.space import Point
from orchestrator.store import Store
from orchestrator.study import read_tried
from orchestrator.study_lock import StudyLock, owned
from orchestrator.sweep import Sweep
from orchestrator.tried import Tried, counted
from orchestrator.work import Event, StageCommitted, StageFailed
from orchestrator.worst_case import WorstCase, asked_plan, confirmed, worst_cases

if TYPE_CHECKING:
    from orchestrator.search_progress import SearchProgress


def read_studies(points: Points, storage: str) -> list[tuple[str, Point, list[Tried]]]:
    """By study its name, what it holds fixed, and its trials. Nothing is written."""
    found: list[tuple[str, Point, list[Tried]]] = []
    for fixed in studies(points.search, points.sweep.grid):
        name = study_name(points.sweep, fixed)
        space = points.search.space.within(fixed)
        identity = points.identity(fixed)
        found.append((name, fixed, read_tried(storage, name, points.search, space, identity)))
    return found


def is_complete(
    points: Points, found: Sequence[tuple[str, Point, Sequence[Tried]]], store: Store
) -> bool:
    """Whether every budget is spent and every confirming stage has its record."""
    keys = store.keys()
    for _, fixed, trials in found:
        size = points.search.space.within(fixed).size
        budget = points.search.settings.trials
        over = [t for t in counted(trials) if t.state != "running"]
        if len(over) < len(trials) - sum(t.repeat_of is not None for t in trials):
            return False
        if len(over) < (budget if size is None else min(budget, size)):
            return False
        plans = (points.confirming(tried.point) for tried in confirmed(trials, points))
        if any(stage.key not in keys for plan in plans for stage in plan.stages):
            return False
    return True


def found_by(sweep: Sweep, home: Home) -> list[WorstCase]:
    """What a search has found so far."""
    points = Points(sweep)
    store = Store(home.store_location(sweep))
    return worst_cases(points, read_studies(points, home.studies_uri(sweep)), store)


def plan_of(sweep: Sweep, home: Home) -> Plan:
    """All that a search has asked for so far, as a sweep's plan."""
    points = Points(sweep)
    return asked_plan(points, read_studies(points, home.studies_uri(sweep)))


def run(sweep: Sweep, home: Home | None = None, console: Console | None = None) -> list[WorstCase]:
    """Search, or go on with a search; by study what was found. MLflow follows.

    Raises:
        ResurgeError: the sweep has no `search` block, or its study is another search's.
    """
    if sweep.search is None:
        raise ResurgeError(f"sweep {sweep.name!r} has no `search` block; `resurge run` runs it")
    home, console = home or Home.find(None), console or Console()
    points, store = Points(sweep), Store(home.store_location(sweep))
    begun = read_studies(points, home.studies_uri(sweep))
    store.put_sweep(sweep.name, {"sweep": sweep.canonical(), "source": sweep.source})
    job = Job.of(sweep, home)
    if not is_complete(points, begun, store):
        _search(points, job, console)
    elif not is_synced(job):
        _sync(job, console)
    return found_by(sweep, home)


def _search(points: Points, job: Job, console: Console) -> None:
    from orchestrator.search_progress import SearchProgress

    settings, home = points.search.settings, job.home
    storage = home.studies_uri(job.sweep)
    open_studies(points, storage)  # another search's are refused before any worker starts
    names = [study_name(job.sweep, fixed) for fixed in studies(points.search, job.sweep.grid)]
    say = functools.partial(console.print, style="dim", soft_wrap=True)
    with (
        owned(StudyLock(storage, names), say) as check,
        # First in, last out: no worker waits for MLflow.
        live_tracking(job, console) as notify,
        new_executor(job.sweep, console) as executor,
        SearchProgress(points.search.goals, settings.trials, console) as progress,
        new_leases(job) as leases,
    ):
        watcher = _Told(progress, notify)
        scheduler = new_scheduler(job, executor, watcher, leases)
        parallel = executor.capacity() if settings.parallel == "auto" else settings.parallel
        Searcher(points, storage, scheduler, parallel, watcher, check).run()


def _sync(job: Job, console: Console) -> None:
    """MLflow's being away is no reason not to show what was found."""
    try:
        console.print(sync_job(job))
    except ResurgeError as error:
        say_behind(job, str(error), console)


class _Told:
    """Tells the progress of everything, and MLflow's writer that there is something new."""

    def __init__(self, progress: SearchProgress, notify: Callable[[], None]) -> None:
        self._progress = progress
        self._notify = notify
        self.begin = progress.begin
        self.confirming = progress.confirming

    def told(self, study: str, trial: Tried) -> None:
        self._progress.told(study, trial)
        self._notify()

    def __call__(self, event: Event) -> None:
        self._progress(event)
        if isinstance(event, StageCommitted | StageFailed):
            self._notify()
