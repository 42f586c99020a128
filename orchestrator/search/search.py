"""The worst case: which settings within a space bring the most back, confirmed on fresh seeds.

`run` searches, or goes on with a search; docs/search.md shows it in a notebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.messages import Event, StageCommitted, StageFailed
from orchestrator.run.job import Job
from orchestrator.run.run import (
    is_synced,
    live_tracking,
    new_executor,
    new_leases,
    new_scheduler,
    say_behind,
    sync_job,
)
from orchestrator.search.searcher import Searcher
from orchestrator.store.store import Store
from orchestrator.study.lock import StudyLock, owned
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import found_by, is_complete, open_studies, read_studies, study_name
from orchestrator.study.tried import Tried
from orchestrator.study.worst_case import WorstCase
from orchestrator.sweep.search import studies
from orchestrator.sweep.sweep import Sweep

if TYPE_CHECKING:
    from orchestrator.search.progress import SearchProgress


def run_search(
    sweep: Sweep, home: Home | None = None, console: Console | None = None
) -> list[WorstCase]:
    """Search, or go on with a search; by study what was found. MLflow follows.

    Raises:
        ResurgeError: the sweep has no `search` block, or its study is another search's.
    """
    if sweep.search is None:
        raise ResurgeError(f"sweep {sweep.name!r} has no `search` block; `resurge run` runs it")
    home, console = home or Home.find(None), console or Console()
    points, store = PointPlanner(sweep), Store(home.store_location(sweep))
    begun = read_studies(points, home.studies_uri(sweep))
    store.put_sweep(sweep.name, {"sweep": sweep.canonical(), "source": sweep.source})
    job = Job.of(sweep, home)
    if not is_complete(points, begun, store):
        _search(points, job, console)
    elif not is_synced(job):
        _sync(job, console)
    return found_by(sweep, home)


def _search(points: PointPlanner, job: Job, console: Console) -> None:
    from orchestrator.search.progress import SearchProgress

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
        parallel = executor.workers().most if settings.parallel == "auto" else settings.parallel
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
