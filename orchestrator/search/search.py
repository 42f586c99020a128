"""The worst case: which settings within a space bring the most back, confirmed on fresh seeds.

`run` searches, or goes on with a search; docs/search.md shows it in a notebook.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from rich.console import Console

from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.messages import Event, StageCommitted, StageFailed
from orchestrator.run.job import Job
from orchestrator.run.run import (
    catch_up,
    live_tracking,
    new_executor,
    new_leases,
    new_scheduler,
)
from orchestrator.search.progress import SearchProgress
from orchestrator.search.searcher import Searcher
from orchestrator.study.defence import are_all_tried
from orchestrator.study.lock import StudyLock, owned
from orchestrator.study.studies import is_complete, open_studies
from orchestrator.study.tried import Tried
from orchestrator.study.worst_case import WorstCase
from orchestrator.sweep.sweep import Sweep


def run_search(
    sweep: Sweep, home: Home | None = None, console: Console | None = None
) -> list[WorstCase]:
    """Search, or go on with a search; by study what was found. MLflow follows.

    Raises:
        ResurgeError: the sweep has no `search` block, or its study is another search's.
    """
    return search_job(Job(sweep, home or Home.find(None)), console or Console(markup=False))


def search_job(job: Job, console: Console) -> list[WorstCase]:
    """The same for a job that is open."""
    if job.sweep.search is None:
        raise ResurgeError(f"sweep {job.sweep.name!r} has no `search` block; `resurge run` runs it")
    points, storage = job.planner, job.studies_uri
    begun = job.studies  # another search's are refused before the store knows of this one
    job.remember()
    are_tried = points.search.defend is None or are_all_tried(points, storage)
    if are_tried and is_complete(points, begun, job.store):
        catch_up(job, console)
        return job.now().worst_cases()
    job.home.check_writable()
    settings = points.search.settings
    # Another search's are refused before any worker starts.
    names = [study.name for _, study in open_studies(points, storage)]
    say = functools.partial(console.print, style="dim", soft_wrap=True)
    with (
        owned(StudyLock(storage, names), say) as check,
        # First in, last out: no worker waits for MLflow.
        live_tracking(job, console) as notify,
        new_executor(job.sweep.resources, console) as executor,
        SearchProgress(points.search.goals, settings.trials, console) as progress,
        new_leases(job) as leases,
    ):
        watcher = _Told(progress, notify)
        scheduler = new_scheduler(job, job.store.keys(), executor, watcher, leases)
        parallel = executor.workers().most if settings.parallel == "auto" else settings.parallel
        try:
            Searcher(points, storage, scheduler, parallel, watcher, check).run()
        finally:
            with contextlib.suppress(ResurgeError):  # what ended the search is said, and not this
                job.now().remember()
    return job.now().worst_cases()


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
