"""The command line: parse and print, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli_store import store_app
from orchestrator.errors import ResurgeError
from orchestrator.home import Home

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 1, 2, 130

app = typer.Typer(
    name="resurge",
    help="Measure concept resurgence: which ordinary fine-tuning brings an unlearned concept back.",
    epilog="Begin with: resurge plan sweeps/quickstart.yaml",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(store_app, name="store")
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(highlight=False, stderr=True)

SweepFile = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a sweep run before.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTING=VALUE]...",
        help="Changes to the file: seeds=5 'finetune.learning_rate=[1e-4,3e-4]'",
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="FOLDER", help="Local state (RESURGE_HOME; default .resurge)."),
]


@app.command()
def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    home: HomeOption = None,
    full: Annotated[bool, typer.Option("--full", help="The whole tree, however long.")] = False,
) -> None:
    """Show what a sweep would run: stages naive, unique and cached, and their tree."""
    from orchestrator.overview import show_plan
    from orchestrator.run import open_job

    show_plan(open_job(sweep, overrides or (), Home.find(home)), out, full)


@app.command()
def run(sweep: SweepFile, overrides: Overrides = None, home: HomeOption = None) -> None:
    """Run a sweep, or what is left of it, and print its results.

    Finished stages are never run again: the same command resumes a sweep that was stopped or
    killed, and runs only what is new after a change of the file. Exit code 0: all done; 1: some
    stages failed; 2: bad input.
    """
    from orchestrator.overview import show_outcome, show_plan_line, show_results
    from orchestrator.run import open_job, run_job

    job = open_job(sweep, overrides or (), Home.find(home))
    show_plan_line(job, out)
    signal.signal(signal.SIGTERM, _interrupt)  # a batch system's kind request is a Ctrl-C
    try:
        outcome = run_job(job, out)
    except KeyboardInterrupt:
        err.print("Stopped. What is finished is kept; the same command goes on from here.")
        raise typer.Exit(EXIT_STOPPED) from None
    show_results(job, out)
    show_outcome(job, outcome, out)
    out.print(f"Browse it: resurge ui{_home_flag(home)}", style="bold")
    raise typer.Exit(EXIT_DONE if outcome.ok else EXIT_FAILED)


@app.command()
def search(sweep: SweepFile, overrides: Overrides = None, home: HomeOption = None) -> None:
    """Search a sweep's space for the worst case, and confirm it on fresh seeds.

    The file's `search` block says what is sought and where. What is measured is never measured
    again: the same command goes on with a search that was stopped or killed, and with more
    `search.trials` it goes on longer. Exit code 0: done; 1: nothing could be confirmed; 2: bad
    input.
    """
    from orchestrator.run import open_sweep
    from orchestrator.search import run as run_search
    from orchestrator.search_table import show_space, show_worst_cases

    place = Home.find(home)
    found = open_sweep(sweep, overrides or (), place)
    if found.search is not None:
        show_space(found, found.search, out)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cases = run_search(found, place, out)
    except KeyboardInterrupt:
        err.print("Stopped. What is finished is kept; the same command goes on from here.")
        raise typer.Exit(EXIT_STOPPED) from None
    show_worst_cases(cases, out)
    out.print(f"Browse it: resurge ui{_home_flag(home)}", style="bold")
    confirmed = all(case.worst is not None for case in cases)
    raise typer.Exit(EXIT_DONE if confirmed else EXIT_FAILED)


@app.command()
def dashboard(
    sweep: SweepFile,
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8080,
) -> None:
    """Open optuna-dashboard on a search's studies, on loopback. Ctrl-C ends it."""
    from orchestrator.run import open_sweep
    from orchestrator.study import dashboard_command

    place = Home.find(home)
    found = open_sweep(sweep, (), place)
    if found.search is None:
        raise ResurgeError(f"sweep {found.name!r} has no `search` block, and so no studies")
    command = dashboard_command(place.studies_uri(found), port)
    out.print(f"Studies: http://127.0.0.1:{port} (Ctrl-C ends it)", style="bold", soft_wrap=True)
    _become(command)


@app.command()
def status(sweep: SweepFile, home: HomeOption = None) -> None:
    """Show how far a sweep is and what failed: read from the store, whoever runs it."""
    from orchestrator.overview import show_status
    from orchestrator.run import open_job

    show_status(open_job(sweep, (), Home.find(home)), out)


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
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Back: this score; else halfway to the base's."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, every setting.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every setting.")] = False,
) -> None:
    """Print resurgence, recovery, control, interval and p-value of every setting."""
    from orchestrator.overview import show_results, show_times
    from orchestrator.run import open_job
    from orchestrator.settings_table import choose_format, text

    axes = tuple(axis.strip() for axis in by.split(",")) if by else ()
    form = choose_format(csv, as_json, time_to_resurgence, threshold, axes)
    job = open_job(sweep, (), Home.find(home))
    if form is not None:
        sys.stdout.write(text(job.plan, job.store, form, axes, time_to_resurgence, threshold))
    elif time_to_resurgence:
        show_times(job, out, threshold)
    else:
        show_results(job, out, axes)


@app.command()
def sync(sweep: SweepFile, home: HomeOption = None) -> None:
    """Bring MLflow and results.parquet up to date from the store; does no harm when repeated."""
    from orchestrator.run import open_job, sync_job

    job = open_job(sweep, (), Home.find(home))
    out.print(sync_job(job))


@app.command()
def export(
    sweep: SweepFile,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to write.")] = Path("."),
    home: HomeOption = None,
) -> None:
    """Write results into a folder.

    NAME.parquet and NAME.csv have one row a trial, NAME.settings.parquet one a setting (seeds taken
    together), NAME.png the curves.
    """
    from orchestrator.run import export_job, open_job

    for path in export_job(open_job(sweep, (), Home.find(home)), to):
        out.print(str(path))


@app.command()
def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow UI on the right store, on loopback. Ctrl-C ends it."""
    from orchestrator.tracking import ui_command

    place = Home.find(home)
    command = ui_command(place.mlflow_uri(), place.artifacts, port)
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    out.print(f"MLflow: {page} (Ctrl-C ends it)", style="bold", soft_wrap=True)
    _become(command)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors.

    With it saved as resurge.schema.json, a first line
    `# yaml-language-server: $schema=resurge.schema.json` makes an editor complete the file.
    """
    from orchestrator.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command(name="list")
def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="bases, unlearners, datasets, metrics, executors"),
    ] = None,
) -> None:
    """List what a sweep file can name: bases, unlearners, datasets, metrics, executors."""
    from orchestrator.overview import show_plugins

    show_plugins(kind, out)


@app.command()
def doctor(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="A base's name, a folder, a file, or owner/name."),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="A repository's commit, 40 hex digits.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A checkpoint file's configuration.")
    ] = None,
    torch_dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float32, float16 or bfloat16.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read .bin and .ckpt weights.")
    ] = False,
) -> None:
    """Check whether a base model can be used here, and what it costs in memory and time.

    Loads it, makes one sampling step and one training step; nothing is written. Exit code 0: it
    can be used; 1: a check failed; 2: bad input.
    """
    from orchestrator.doctor import open_base, show_checks

    given = {"revision": revision, "config": config, "torch_dtype": torch_dtype}
    settings = {name: value for name, value in given.items() if value is not None}
    model = open_base(base, settings | ({"allow_pickle": True} if allow_pickle else {}))
    # transformers warns of image processors that nothing here uses when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with out.status("starting") as status:
        from workers.doctor import examine

        checks = list(examine(model, status.update))
    show_checks(checks, out)
    failed = any(check.status == "fail" for check in checks)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_DONE)


@app.command()
def reproduce(
    trial: Annotated[
        str, typer.Argument(metavar="RUN", help="An MLflow run's id, or a trial's first digits.")
    ],
    from_base: Annotated[
        bool, typer.Option("--from-base", help="Make everything again, not the last edit only.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show what made the numbers; make nothing again.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Show everything that made a trial's numbers, make them again, and compare.

    Begins from the nearest ancestor whose weights are in the store and works beside the store.
    Exit code 0: every number is identical; 1: some differ (on another machine or with other
    versions that is expected, and the difference is printed); 2: bad input.
    """
    from orchestrator.find_trial import find_trial
    from orchestrator.reproduce import reproduce as make_again
    from orchestrator.reproduce import show_origin, show_reproduction

    found = find_trial(trial, Home.find(home))
    show_origin(found, out)
    if show:
        return
    result = make_again(found, from_base, out)
    show_reproduction(result, out)
    raise typer.Exit(EXIT_DONE if result.is_identical else EXIT_FAILED)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="As in `resurge reproduce`.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The trial to compare it with.")],
    home: HomeOption = None,
) -> None:
    """Show what differs between two trials, and what that changed."""
    from orchestrator.compare import show_difference
    from orchestrator.find_trial import find_trial

    place = Home.find(home)
    show_difference(find_trial(one, place), find_trial(other, place), out)


def _become(command: list[str]) -> None:
    """Go on as a server that is installed beside this Python."""
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    executable = shutil.which(command[0], path=beside_python)
    if executable is None:
        raise ResurgeError(f"{command[0]!r} is not installed beside {sys.executable}")
    sys.stdout.flush()
    os.execv(executable, command)


def _home_flag(home: Path | None) -> str:
    return f" --home {home}" if home else ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The `resurge` command."""
    try:
        app()
    except ResurgeError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
