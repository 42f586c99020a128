"""The command line: parse and print, nothing else."""

from __future__ import annotations

import errno
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import catalog, convert, servers, trial
from orchestrator.cli import cluster as cluster_commands
from orchestrator.cli.common import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    ClusterOption,
    HomeOption,
    Overrides,
    SweepFile,
    err,
    flush,
    out,
    stoppable,
    warn,
    warn_of,
    warn_of_doubts,
    write,
    write_anything,
)
from orchestrator.cli.saving import refuse_others_file, save_worst
from orchestrator.cli.store import store_app
from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import user_path
from orchestrator.core.redact import redact
from orchestrator.core.registry import PluginWarning
from orchestrator.core.text import one_line
from orchestrator.home import Home

if TYPE_CHECKING:
    from orchestrator.run.job import Job

_OF_THE_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
}
"""A disk that is full, a folder that may not be written: of these a sentence says all."""
_LONG_WORD = re.compile(r"\S{1000,}")

app = typer.Typer(
    name="resurge",
    help="Measure concept resurgence: which ordinary fine-tuning brings an unlearned concept back.",
    epilog="Begin with: resurge plan sweeps/quickstart.yaml",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    home: HomeOption = None,
    full: Annotated[bool, typer.Option("--full", help="The whole tree, however long.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="COUNT", help="Also what it would take on so many workers."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of which kind: a part of its name ('H100'), or 'cpu'."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, metavar="AMOUNT", help="What a worker's hour costs.")
    ] = None,
) -> None:
    """Show what a sweep would run: stages naive, unique and cached, and their tree.

    With --workers also GPU hours, the time until it is done, and with --price the cost, for every
    trial alone, for a script that keeps unlearned models, and for this plan: by what stages of the
    same base took that are in the store.
    """
    from orchestrator.cli.show.plan import show_forecast, show_plan
    from orchestrator.run.job import open_job

    if workers is None and (gpu, price) != (None, None):
        raise ResurgeError("--gpu and --price are about --workers COUNT; give it too")
    job = open_job(sweep, overrides or (), Home.find(home))
    show_plan(job, out, full)
    if workers is not None:
        from orchestrator.run.forecast import forecast_job

        show_forecast(forecast_job(job, workers, gpu), workers, price, out)
    warn_of_doubts(job)


@app.command()
@stoppable()
def run(sweep: SweepFile, overrides: Overrides = None, home: HomeOption = None) -> None:
    """Run a sweep, or what is left of it, and print its results.

    Finished stages are never run again: the same command resumes a sweep that was stopped or
    killed, and runs only what is new after a change of the file. Exit code 0: all done; 1: some
    stages failed; 2: bad input.
    """
    from orchestrator.cli.show.plan import show_plan_line
    from orchestrator.cli.show.results import show_results
    from orchestrator.cli.show.status import show_outcome
    from orchestrator.run.job import open_job
    from orchestrator.run.run import run_job

    job = open_job(sweep, overrides or (), Home.find(home))
    show_plan_line(job, out)
    warn_of_doubts(job)
    outcome = run_job(job, out)
    show_results(job, out)
    if job.store.lost:
        out.print("What was damaged is made again.")
        outcome = run_job(job, out)
        show_results(job, out)
    show_outcome(job, outcome, out)
    _show_next(job)
    raise typer.Exit(EXIT_DONE if outcome.ok else EXIT_FAILED)


@app.command()
@stoppable()
def search(
    sweep: SweepFile,
    overrides: Overrides = None,
    home: HomeOption = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the worst settings as a sweep file."),
    ] = None,
) -> None:
    """Search a sweep's space for the worst case, and confirm it on fresh seeds.

    The file's `search` block says what is sought and where. What is measured is never measured
    again: the same command goes on with a search that was stopped or killed, and with more
    `search.trials` it goes on longer. Exit code 0: done; 1: nothing could be confirmed; 2: bad
    input.
    """
    from orchestrator.cli.show.worst_cases import (
        show_best_defences,
        show_space,
        show_worst_cases,
    )
    from orchestrator.run.job import open_job
    from orchestrator.search.search import search_job

    job = open_job(sweep, overrides or (), Home.find(home))
    if save is not None:
        refuse_others_file(save)
    if job.sweep.search is not None:
        show_space(job.sweep, job.sweep.search, out)
        warn_of_doubts(job)
    cases = search_job(job, out)
    show_worst_cases(cases, out)
    if job.sweep.search is not None and job.sweep.search.defend is not None:
        show_best_defences(job.sweep.search, cases, out)
    if save is not None:
        save_worst(job.sweep, cases, save)
    _show_next(job)
    answered = all(case.is_answered for case in cases)
    raise typer.Exit(EXIT_DONE if answered else EXIT_FAILED)


@app.command()
def status(sweep: SweepFile, home: HomeOption = None, cluster: ClusterOption = None) -> None:
    """Show how far a sweep is, who runs it and what failed: read from the store.

    Of a cluster also what Ray says of the sweep's job, where the head answers.
    """
    from orchestrator.cli.show.status import show_status
    from orchestrator.run.job import open_results

    if cluster:
        cluster_commands.show_cluster_status(sweep, cluster)
        return
    job = open_results(sweep, Home.find(home))
    warn_of(job)
    show_status(job, out)


@app.command()
def results(
    sweep: SweepFile,
    home: HomeOption = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="AXIS[,AXIS]…", help="Average over all other axes."),
    ] = None,
    time_to_resurgence: Annotated[
        bool, typer.Option("--time-to-resurgence", help="How many steps until it is back.")
    ] = False,
    groups: Annotated[
        bool,
        typer.Option("--groups", help="Synonyms, others, each concept of a set, by setting."),
    ] = False,
    points: Annotated[
        bool,
        typer.Option("--points", help="Every model on the way, after each erasure and fine-tune."),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Back: this score; else halfway to the base's."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, every setting.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every setting.")] = False,
    cluster: ClusterOption = None,
) -> None:
    """Print resurgence, recovery, control, interval and p-value of every setting."""
    from orchestrator.cli.show.results import (
        choose_format,
        show_points,
        show_results,
        show_settings,
        show_times,
    )
    from orchestrator.cli.show.status import show_heads
    from orchestrator.cluster.view import home_at
    from orchestrator.results.settings_table import text
    from orchestrator.run.job import open_results

    axes = tuple(axis.strip() for axis in by.split(",")) if by else ()
    form = choose_format(csv, as_json, time_to_resurgence, threshold, axes, groups, points)
    job = open_results(sweep, home_at(home, cluster))
    warn_of(job)
    if form is not None:
        write(text(job.plan, job.store, form, axes, time_to_resurgence, threshold, points))
    elif time_to_resurgence:
        show_times(job, out, threshold)
    elif points:
        show_points(job, out)
    elif groups:
        show_settings(job.plan, job.store, out, axes, groups)
    else:
        show_results(job, out, axes)
    if form is None:
        show_heads(job, out)


@app.command()
def sync(sweep: SweepFile, home: HomeOption = None) -> None:
    """Bring MLflow and results.parquet up to date from the store; does no harm when repeated."""
    from orchestrator.run.job import open_results
    from orchestrator.run.run import sync_job

    job = open_results(sweep, Home.find(home))
    warn_of(job)
    out.print(sync_job(job))


@app.command()
def export(
    sweep: SweepFile,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to write.")] = Path("."),
    home: HomeOption = None,
) -> None:
    """Write results into a folder.

    NAME.parquet and NAME.csv have one row a trial, NAME.settings.parquet one a setting (seeds taken
    together), NAME.points.parquet one a model on a setting's way and group of prompts, NAME.png the
    curves.
    """
    from orchestrator.run.job import open_results
    from orchestrator.run.run import export_job

    job = open_results(sweep, Home.find(home))
    warn_of(job)
    folder = user_path(to, "--to") if str(to).startswith("~") else to
    for path in export_job(job, folder):
        out.print(str(path), soft_wrap=True)


# In the order in which --help shows them.
for module in (cluster_commands, servers, catalog, convert, trial):
    for name, command in module.COMMANDS.items():
        app.command(name)(command)


app.add_typer(store_app, name="store")


def _show_next(job: Job) -> None:
    """How to see it again, as it can be typed."""
    uri = job.mlflow_uri
    is_server = uri.startswith(("http://", "https://"))
    browse = redact(uri) if is_server else job.command("ui")
    out.print(f"Browse it: {browse}", style="bold", soft_wrap=True)
    out.print(f"Print it again: {job.command(f'results {job.name}')}", soft_wrap=True)


def _shown(usual: Callable[..., None]) -> Callable[..., None]:
    """Show what is wrong with a plug-in as a sentence."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, PluginWarning):
            warn(str(message))
        else:
            usual(message, category, *where, **more)

    warnings.simplefilter("always", PluginWarning)
    return show


def main() -> None:
    """The `resurge` command. What it prints of an error holds no credentials."""
    warnings.showwarning = _shown(warnings.showwarning)
    write_anything()
    try:
        app()
    except ResurgeError as error:
        # A word that goes on for a screen would hide the others.
        text = _LONG_WORD.sub(lambda word: one_line(word[0], 160), f"error: {error}")
        err.print(redact(text), style="red", soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            file = f": {error.filename}" if error.filename else ""
            err.print(redact(f"error: {error.strerror}{file}"), style="red", soft_wrap=True)
            sys.exit(EXIT_BAD_INPUT)
        err.print(redact(traceback.format_exc()), soft_wrap=True)
        sys.exit(EXIT_FAILED)
    finally:
        flush()


if __name__ == "__main__":
    main()
