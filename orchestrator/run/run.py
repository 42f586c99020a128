"""A sweep from file to results: what `resurge run`, `sync` and `export` do."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.core.digest import sha256
from orchestrator.core.errors import CorruptObject, ResurgeError, StoreError
from orchestrator.core.registry import find
from orchestrator.executors.base import Executor
from orchestrator.messages import Event, StageCommitted, StageFailed
from orchestrator.plan.tasks import make_tasks
from orchestrator.results.measure import TrialReader
from orchestrator.results.trials_table import table, write
from orchestrator.run.job import Job
from orchestrator.run.progress import Progress
from orchestrator.schedule.leases import Leases
from orchestrator.schedule.scheduler import Outcome, Rules, Scheduler
from orchestrator.sweep.resources import ExecutorSettings, Resources
from orchestrator.tracking.background import BackgroundTracker
from orchestrator.tracking.database import TrackingError, holds
from orchestrator.tracking.mlflow import SYNCED, sync
from orchestrator.tracking.run import View
from orchestrator.tracking.sweep_runs import SweepView

CLOSE_TIMEOUT_S = 120.0
MAX_REPAIRS = 3
"""How often, at a sweep's end, what was found damaged after it was made is made again."""


def run_job(job: Job, console: Console) -> Outcome:
    """Run what has no record yet; bring MLflow and the Parquet file up to date.

    What turns out to be damaged when the results are read is made again too.

    Raises:
        ResurgeError: the sweep is a search, or the home cannot be written to.
        StoreError: what was made again was damaged again.
    """
    if job.sweep.search is not None:
        raise ResurgeError(
            f"sweep {job.sweep.name!r} has a `search` block: run it with `resurge search`"
        )
    job.remember()
    outcome = _run_missing(job, console)
    for _ in range(MAX_REPAIRS):
        if not job.store.lost:
            break
        again = _run_missing(job, console)
        again.ran |= outcome.ran
        outcome = again
    if job.store.lost:
        raise StoreError(
            f"what {', '.join(sorted(job.store.lost))} left in {job.store.location} was damaged "
            f"{MAX_REPAIRS} times in a row: check that disk or its mount"
        )
    return outcome


def _run_missing(job: Job, console: Console) -> Outcome:
    """Run what has no record; afterwards the store's `lost` are those found damaged since."""
    sweep, plan = job.sweep, job.plan
    done = job.done()
    job.store.lost.clear()
    tasks = make_tasks(plan, done, sweep.keep, sweep.resources.has_score_workers)
    if not tasks:
        catch_up(job, console)
        return Outcome()
    job.home.check_writable()
    with (
        # First in, last out: no worker waits for MLflow.
        live_tracking(job, console) as notify,
        new_executor(sweep.resources, console) as executor,
        Progress(plan, done, executor.workers().most, console) as progress,
        new_leases(job) as leases,
    ):

        def listener(event: Event) -> None:
            progress(event)
            if isinstance(event, StageCommitted | StageFailed):
                notify()

        scheduler = new_scheduler(job, done, executor, listener, leases)
        for _ in range(1 + MAX_REPAIRS):
            scheduler.add(tasks)
            outcome = scheduler.run()
            done = {stage.key for stage in plan.stages} - scheduler.lost()
            tasks = make_tasks(plan, done, sweep.keep, sweep.resources.has_score_workers)
            if not tasks:
                break
    return outcome


def new_executor(resources: Resources, console: Console, **changed: Any) -> Executor:
    """The sweep's own executor, not started; `changed` replaces some of its resources."""
    executor_class: Any = find("executor", resources.executor)
    shared = resources.model_dump(include=set(ExecutorSettings.model_fields)) | changed
    settings = executor_class.Settings.model_validate(shared | resources.executor_settings)
    console.print(f"Starting workers ({resources.executor}) …", style="dim")
    executor: Executor = executor_class(settings)
    return executor


def new_leases(job: Job) -> Leases:
    """This head's claims on the store that it shares with others."""
    return Leases(job.store, job.sweep.name, job.sweep.resources.priority)


def new_scheduler(
    job: Job,
    done: set[str],
    executor: Executor,
    listener: Callable[[Event], None],
    leases: Leases,
) -> Scheduler:
    """A scheduler without tasks, by the sweep's resources; `done` are keys with a record."""
    resources = job.sweep.resources
    rules = Rules(
        stage_timeout_s=60 * resources.stage_timeout_min,
        checkpoint_every_s=60 * resources.checkpoint_every_min,
    )
    return Scheduler((), done, executor, job.store, job.log_folder, listener, leases, rules)


@contextlib.contextmanager
def live_tracking(job: Job, console: Console) -> Iterator[Callable[[], None]]:
    """What to call when something has happened, so that MLflow follows; says so if it fell
    behind.
    """
    tracker = BackgroundTracker(view_of(job), job.mlflow_uri, job.home.artifacts)
    try:
        yield tracker.notify
    finally:
        job = job.now()
        problem = None
        try:
            _write_results(job)
        except TrackingError as error:
            problem = str(error)
        with console.status("Bringing MLflow up to date …"):
            is_current = tracker.close(CLOSE_TIMEOUT_S)
        if not is_current:
            problem = str(tracker.last_error)
        if problem is None:
            _mark_synced(job, tracker.shown)
        else:
            _say_behind(job, problem, console)


def catch_up(job: Job, console: Console) -> None:
    """Bring MLflow and the Parquet file up to date where nothing is left to run. That they cannot
    be is no reason not to show what was found.
    """
    try:
        if not is_synced(job):
            console.print(sync_job(job))
    except (TrackingError, CorruptObject) as error:  # who runs a sweep makes what is damaged again
        _say_behind(job, str(error), console)


def _say_behind(job: Job, why: str, console: Console) -> None:
    """MLflow or the home lacks something."""
    again = job.command(f"sync {job.name}")
    text = f"MLflow is behind ({why}); nothing is lost: {again}"
    console.print(text, style="yellow", soft_wrap=True)


def sync_job(job: Job) -> str:
    """Bring MLflow and the Parquet file up to date from the store; a sentence on what was done.

    Raises:
        TrackingError: MLflow does not answer, or the home cannot be written.
    """
    _write_results(job)
    counts = sync(view_of(job), job.mlflow_uri, job.home.artifacts)
    _mark_synced(job, counts.shown)
    return str(counts)


def view_of(job: Job) -> View:
    """What MLflow should show of it."""
    if not job.is_search:
        return SweepView(job.plan, job.store, job.recorded)
    from orchestrator.tracking.search_runs import StudyView  # needs Optuna

    return StudyView(job.points, job.studies_uri, job.store)


def is_synced(job: Job) -> bool:
    """Whether MLflow was told of everything and still has it. Of a server nothing is known here."""
    try:
        state, shown = job.home.sync_mark(job.name).read_text().split()
        count = int(shown)
    except (OSError, ValueError):
        return False
    is_told = state == _sync_state(job) and job.home.results(job.name).is_file()
    return is_told and holds(job.mlflow_uri, job.name, SYNCED, count)


def _mark_synced(job: Job, shown: int) -> None:
    mark = job.home.sync_mark(job.name)
    with contextlib.suppress(OSError):  # without it, the next run looks again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{_sync_state(job)} {shown}")


def _sync_state(job: Job) -> str:
    """A digest of what MLflow should know: where it is, the trials, and which are recorded."""
    present = sorted(job.store.keys() & {stage.key for stage in job.plan.stages})
    trials = [trial.digest for trial in job.plan.trials]
    asked = [dict(job.search_block)] if job.search_block is not None else []
    return sha256([job.mlflow_uri, trials, present, sha256(job.recorded), *asked])


def _write_results(job: Job) -> None:
    rows, path = table(job.plan, job.store), job.home.results(job.name)
    try:
        write(rows, path)
    except OSError as error:
        raise TrackingError(f"{path} cannot be written: {error.strerror or error}") from error


def export_job(job: Job, folder: Path) -> list[Path]:
    """Write results as Parquet and CSV, settings, and the figure, into a folder of the user's.

    Raises:
        ResurgeError: they cannot be written there; nothing is left half done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".resurge-") as aside:
            made = _write_exports(job, Path(aside))
            return [path.replace(folder / path.name) for path in made]
    except OSError as error:
        why = error.strerror or str(error)
        raise ResurgeError(f"cannot export to {folder}: {why}. Name another with --to") from error


def _write_exports(job: Job, folder: Path) -> list[Path]:
    from pyarrow import csv

    from orchestrator.results.chains import chains
    from orchestrator.results.figures import figure
    from orchestrator.results.settings import aggregate
    from orchestrator.results.settings_table import points_table, settings_table

    endings = ("parquet", "csv", "png", "settings.parquet", "points.parquet")
    paths = [folder / f"{job.name}.{ending}" for ending in endings]
    plan, store = job.plan, job.store
    reader = TrialReader(plan, store)
    rows = table(plan, store, reader)
    write(rows, paths[0])
    csv.write_csv(rows, paths[1])
    figure(plan, store, paths[2], reader)
    write(settings_table(aggregate(plan, store, reader)), paths[3])
    write(points_table(chains(plan, store, reader)), paths[4])
    return paths
