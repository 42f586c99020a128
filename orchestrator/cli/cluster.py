"""`resurge submit`, `logs` and `cancel`; `status` and `results` of a cluster."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrator.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    ClusterOption,
    Overrides,
    SweepFile,
    err,
    out,
    warn,
    warn_of,
    write,
)
from orchestrator.cluster.clusters_file import Cluster, find_cluster
from orchestrator.cluster.view import FAR_PATIENCE_S, check_visible, entry_at
from orchestrator.core.errors import ResurgeError, StoreError, SweepError
from orchestrator.core.redact import redact
from orchestrator.core.text import visible
from orchestrator.home import Home

if TYPE_CHECKING:
    from orchestrator.cluster.jobs import Jobs, SweepJob
    from orchestrator.cluster.shipment import Shipment
    from orchestrator.run.job import Job


STATES = {
    "PENDING": "is starting",
    "RUNNING": "is running",
    "STOPPED": "was stopped",
    "SUCCEEDED": "has ended",
    "FAILED": "failed",
}

FollowOption = Annotated[
    bool,
    typer.Option("--follow", help="Show progress until the end; Ctrl-C leaves the sweep running."),
]


def submit(
    sweep: SweepFile,
    overrides: Overrides = None,
    cluster: ClusterOption = None,
    follow: FollowOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan and pack, and send nothing.")
    ] = False,
) -> None:
    """Run a sweep, or what is left of it, on a cluster: by Ray's Jobs API.

    Plans here, sends the sweep, the plug-ins of RESURGE_PLUGINS and this very code, and returns at
    once. The same command resumes a sweep that ended, was cancelled or was lost with its head. No
    credential is sent. Exit code with --follow: that of the sweep; 2: bad input, or refused.
    """
    from orchestrator.cluster.shipment import local_paths, pack
    from orchestrator.run.job import open_job

    chosen = find_cluster(cluster)
    job = open_job(sweep, overrides or (), entry_at(chosen))
    paths = local_paths(job.sweep)
    with tempfile.TemporaryDirectory(prefix="resurge-") as folder:
        shipment = pack(job.sweep, overrides or (), chosen, Path(folder))
        _show_work(job)
        for path in paths:
            warn(f"{path} is not sent along: every machine of the cluster must have it there")
        out.print(f"To send: {', '.join(map(str, shipment.freight))}", soft_wrap=True)
        if dry_run:
            settings = " ".join(f"{name}={value}" for name, value in shipment.environment.items())
            out.print(f"On the head: {shipment.entrypoint}", soft_wrap=True)
            out.print(f"With {settings}", soft_wrap=True)
            out.print("Nothing was sent: --dry-run.")
            return
        jobs, job_id = _start(chosen, shipment)
    if follow:
        raise typer.Exit(_follow(jobs, job_id, job.sweep.name, chosen))
    _show_next(job.sweep.name, chosen)


def logs(
    sweep: SweepFile,
    cluster: ClusterOption = None,
    follow: FollowOption = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, metavar="LINES", help="Only the last so many.")
    ] = None,
) -> None:
    """Print what a sweep's job has printed, and where its tasks' logs are."""
    chosen = find_cluster(cluster)
    jobs, job = _find_job(sweep, chosen)
    if follow:
        raise typer.Exit(_follow(jobs, job.id, job.sweep, chosen, tail))
    write(visible(_last_lines(jobs.log(job.id), tail)))
    folder = f"{chosen.entry.home}/logs/{job.sweep}"
    _say(f"{job.id} {STATES[job.status]}. Task logs: {folder} on the machine that ran the task")


def cancel(sweep: SweepFile, cluster: ClusterOption = None) -> None:
    """Stop a sweep on a cluster. What is finished is kept; `resurge submit` goes on from there."""
    chosen = find_cluster(cluster)
    jobs, job = _find_job(sweep, chosen)
    if job.is_over:
        out.print(f"{job.id} {STATES[job.status]}: there is nothing to stop.")
        return
    job = jobs.stop(job.id)
    if not job.is_over:
        raise ResurgeError(
            f"{job.id} was asked to stop and has not yet ended: "
            f"resurge status {job.sweep}{_flag(chosen)}"
        )
    out.print(f"{job.id} {STATES[job.status]}. Kept:")
    try:
        _show_status(job.sweep, entry_at(chosen))
    except ResurgeError as error:
        _say(f"what is in the store; from here it cannot be seen: {error}")
    out.print(f"The same submit goes on from there: resurge submit {job.sweep}{_flag(chosen)}")


def show_cluster_status(sweep: str, cluster: str) -> None:
    """The job as Ray knows it, where the head answers; the rest from the store."""
    from orchestrator.cluster.jobs import ClusterAwayError, Jobs

    chosen = find_cluster(cluster)
    job = None
    try:
        job = Jobs(chosen, warn).latest(name_of(sweep))
    except ClusterAwayError as error:
        warn(f"{error} What follows is the store's.")
    if job is not None:
        _show_job(job)
    try:
        _show_status(sweep, entry_at(chosen))
    except ResurgeError as error:
        if job is None:
            raise
        _say(f"More cannot be seen from here: {error}")


def _show_status(sweep: str, place: Home) -> None:
    from orchestrator.cli.show.status import show_status
    from orchestrator.run.job import open_results

    check_visible(place)
    job = open_results(sweep, place)
    warn_of(job)
    show_status(job, out)


def _show_work(job: Job) -> None:
    """What there is to do, and how much of it is done already, if the store can be seen."""
    from orchestrator.cli.show.plan import show_counts, show_plan_line

    if job.sweep.search is not None:
        from orchestrator.cli.show.worst_cases import show_space

        show_space(job.sweep, job.sweep.search, out)
        return
    show_plan_line(job, out)
    try:
        check_visible(job.home)
        job.store.keys()
    except (StoreError, ResurgeError) as error:
        show_counts(job, None, out)
        _say(f"How much of it is done already cannot be seen from here: {error}")
    else:
        show_counts(job, job.done(), out)


def _start(cluster: Cluster, shipment: Shipment) -> tuple[Jobs, str]:
    """Submit the sweep unless it runs already."""
    from orchestrator.cluster.jobs import Jobs

    jobs = Jobs(cluster, warn)
    last = jobs.latest(shipment.sweep)
    if last is not None and not last.is_over:
        if last.content != shipment.content:
            raise ResurgeError(
                f"another sweep of the name {shipment.sweep!r} runs on {cluster} ({last.id}), with "
                f"other contents: wait for it, stop it (resurge cancel {shipment.sweep}"
                f"{_flag(cluster)}), or give this one another name"
            )
        out.print(f"{_job_line(last)} It is this very sweep; nothing was sent.")
        return jobs, last.id
    attempt = last.attempt + 1 if last is not None else 1
    job_id = jobs.submit(shipment, attempt)
    resumed = " It goes on from what is finished." if last is not None else ""
    out.print(Text.assemble("Submitted ", (job_id, "bold"), f" to {cluster}.{resumed}"))
    return jobs, job_id


def _follow(jobs: Jobs, job_id: str, sweep: str, cluster: Cluster, tail: int | None = None) -> int:
    """Show what the job prints until it is over; the exit code that says how it ended."""
    skip = 0
    if tail is not None:
        printed = jobs.log(job_id)
        skip = len(printed) - len(_last_lines(printed, tail))
    try:
        for text in jobs.follow(job_id):
            write(visible(text[skip:]))
            skip = max(0, skip - len(text))
        job = jobs.wait(job_id, FAR_PATIENCE_S)
    except KeyboardInterrupt:
        _say(f"Not followed any more; {job_id} goes on.")
        _show_next(sweep, cluster)
        return EXIT_STOPPED
    _show_job(job)
    if job.exit_code is not None:
        return job.exit_code
    return {"SUCCEEDED": EXIT_DONE, "STOPPED": EXIT_STOPPED}.get(job.status, EXIT_FAILED)


def _find_job(sweep: str, cluster: Cluster) -> tuple[Jobs, SweepJob]:
    from orchestrator.cluster.jobs import Jobs

    jobs, name = Jobs(cluster, warn), name_of(sweep)
    job = jobs.latest(name)
    if job is None:
        raise ResurgeError(
            f"{cluster} remembers no job of a sweep {name!r}; a head that was restarted has "
            f"forgotten. What is finished is in the store: resurge status {name}{_flag(cluster)}"
        )
    return jobs, job


def name_of(sweep: str) -> str:
    """A sweep's name, also of its file; what that points at may be gone since it was sent."""
    from orchestrator.config.yaml_tree import read_yaml
    from orchestrator.run.job import is_file
    from orchestrator.sweepfile.load import NAME, load

    if not is_file(sweep):
        return sweep
    try:
        return load(Path(sweep)).name
    except SweepError:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            root = read_yaml(Path(sweep).read_text("utf-8-sig"), None, [])
            values = root.plain() if root is not None else None
            name = values.get("name") if isinstance(values, dict) else None
            if isinstance(name, str) and NAME.fullmatch(name):
                return name
        raise


def _show_job(job: SweepJob) -> None:
    """How it is; why, if it never came to run our command."""
    out.print(_job_line(job))
    if job.status == "FAILED" and job.exit_code is None:
        _say(job.message)


def _job_line(job: SweepJob) -> str:
    code = f" (exit code {job.exit_code})" if job.exit_code else ""
    return f"{job.id} {STATES[job.status]}{code}."


def _show_next(sweep: str, cluster: Cluster) -> None:
    rows: Sequence[tuple[str, str]] = (
        (f"resurge logs {sweep}{_flag(cluster)} --follow", "watch it"),
        (f"resurge status {sweep}{_flag(cluster)}", "how far it is"),
        (f"resurge results {sweep}{_flag(cluster)}", "what it found so far"),
        (f"resurge cancel {sweep}{_flag(cluster)}", "stop it; what is finished is kept"),
    )
    width = max(len(command) for command, _ in rows)
    for command, what in rows:
        out.print(f"  {command:<{width}}  {what}", soft_wrap=True)


def _flag(cluster: Cluster) -> str:
    return f" --cluster {cluster.name}"


def _last_lines(text: str, count: int | None) -> str:
    if count is None:
        return text
    return "".join(text.splitlines(keepends=True)[-count:]) if count else ""


def _say(text: str) -> None:
    err.print(redact(text), soft_wrap=True)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "submit": submit,
    "logs": logs,
    "cancel": cancel,
}
