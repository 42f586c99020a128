"""A sweep from file to results: what `resurge run`, `sync` and `export` do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.core.registry import find
from orchestrator.executors.base import Executor
from orchestrator.messages import Event, StageCommitted, StageFailed, Task
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.job import Job
from orchestrator.run.progress import Progress
from orchestrator.schedule.leases import Leases
from orchestrator.schedule.scheduler import Outcome, Rules, Scheduler
from orchestrator.sweep.resources import ExecutorSettings
from orchestrator.sweep.sweep import Sweep

CLOSE_TIMEOUT_S = 120.0
MAX_REPAIRS = 3
"""How often, at a sweep's end, what was found damaged after it was made is made again."""


def run_job(job: Job, console: Console) -> Outcome:
    """Run what has no record yet; bring MLflow and the Parquet file up to date.

    Raises:
        ResurgeError: the sweep is a search.
    """
    if job.sweep.search is not None:
        raise ResurgeError(
            f"sweep {job.sweep.name!r} has a `search` block: run it with `resurge search`"
        )
    values = {"sweep": job.sweep.canonical(), "source": job.sweep.source}
    job.store.put_sweep(job.sweep.name, values)
    done = job.done()
    tasks = _tasks(job, done)
    outcome = Outcome()
    if tasks:
        with (
            # First in, last out: no worker waits for MLflow.
            live_tracking(job, console) as notify,
            new_executor(job.sweep, console) as executor,
            Progress(job.plan, done, executor.workers().most, console) as progress,
            new_leases(job) as leases,
        ):

            def listener(event: Event) -> None:
                progress(event)
                if isinstance(event, StageCommitted | StageFailed):
                    notify()

            scheduler = new_scheduler(job, executor, listener, leases)
            for _ in range(1 + MAX_REPAIRS):
                scheduler.add(tasks)
                outcome = scheduler.run()
                tasks = _tasks(job, {stage.key for stage in job.plan.stages} - scheduler.lost())
                if not tasks:
                    break
    elif not is_synced(job):
        console.print(sync_job(job))
    return outcome


def _tasks(job: Job, done: set[str]) -> tuple[Task, ...]:
    return make_tasks(job.plan, done, job.sweep.keep, job.sweep.resources.has_score_workers)


def sync_job(job: Job) -> str:
    """Bring MLflow and the Parquet file up to date from the store; a sentence on what was done.

    Raises:
        ResurgeError: MLflow does not answer.
    """
    from orchestrator.tracking.mlflow import sync

    write_results(job)
    counts = sync(job.view(), job.home.mlflow_uri(job.sweep), job.home.artifacts)
    _mark_synced(job)
    return str(counts)


def write_results(job: Job) -> Path:
    """Write the sweep's Parquet file."""
    from orchestrator.results.trials_table import table, write

    path = job.home.results(job.sweep.name)
    write(table(job.plan, job.store), path)
    return path


def export_job(job: Job, folder: Path) -> list[Path]:
    """Write results as Parquet and CSV, settings, and the figure, into a folder of the user's."""
    from pyarrow import csv

    from orchestrator.results.figures import figure
    from orchestrator.results.settings import aggregate
    from orchestrator.results.settings_table import settings_table
    from orchestrator.results.trials_table import table, write

    folder.mkdir(parents=True, exist_ok=True)
    endings = ("parquet", "csv", "png", "settings.parquet")
    paths = [folder / f"{job.sweep.name}.{ending}" for ending in endings]
    rows = table(job.plan, job.store)
    write(rows, paths[0])
    csv.write_csv(rows, paths[1])
    figure(job.plan, job.store, paths[2])
    write(settings_table(aggregate(job.plan, job.store)), paths[3])
    return paths


def new_executor(sweep: Sweep, console: Console, **changed: Any) -> Executor:
    """The sweep's own executor, not started; `changed` replaces some of its resources."""
    resources = sweep.resources
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
    job: Job, executor: Executor, listener: Callable[[Event], None], leases: Leases
) -> Scheduler:
    """A scheduler without tasks, by the sweep's resources."""
    resources = job.sweep.resources
    rules = Rules(
        stage_timeout_s=60 * resources.stage_timeout_min,
        checkpoint_every_s=60 * resources.checkpoint_every_min,
    )
    done, logs = job.store.keys(), job.home.logs(job.sweep.name)
    return Scheduler((), done, executor, job.store, logs, listener, leases, rules)


@contextlib.contextmanager
def live_tracking(job: Job, console: Console) -> Iterator[Callable[[], None]]:
    """What to call when something has happened, so that MLflow follows; says so if it fell
    behind.
    """
    from orchestrator.tracking.mlflow import BackgroundTracker

    uri = job.home.mlflow_uri(job.sweep)
    tracker = BackgroundTracker(job.view(), uri, job.home.artifacts)
    try:
        yield tracker.notify
    finally:
        job = job.now()
        write_results(job)
        with console.status("Bringing MLflow up to date …"):
            is_current = tracker.close(CLOSE_TIMEOUT_S)
        if is_current:
            _mark_synced(job)
        else:
            say_behind(job, str(tracker.last_error), console)


def say_behind(job: Job, why: str, console: Console) -> None:
    """MLflow lacks something."""
    console.print(
        f"MLflow is behind ({why}); nothing is lost: resurge sync {job.sweep.name}", style="yellow"
    )


def _sync_state(job: Job) -> str:
    """A digest of what MLflow should know: where it is, the trials, and which are recorded."""
    present = sorted(job.store.keys() & {stage.key for stage in job.plan.stages})
    trials = [trial.digest for trial in job.plan.trials]
    asked = [] if job.sweep.search is None else [job.sweep.search.canonical()]
    return sha256([job.home.mlflow_uri(job.sweep), trials, present, *asked])


def is_synced(job: Job) -> bool:
    """Whether MLflow was told of everything, as far as is known here."""
    mark = job.home.sync_mark(job.sweep.name)
    return mark.exists() and mark.read_text() == _sync_state(job)


def _mark_synced(job: Job) -> None:
    mark = job.home.sync_mark(job.sweep.name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(_sync_state(job))
