"""What the commands share: where they print, their exit codes, their common options."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.show.screen import Screen, stop_writing
from orchestrator.core.errors import ResurgeError, Stopped

if TYPE_CHECKING:
    from orchestrator.run.job import Job

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 1, 2, 130
out = Screen(width=None if sys.stdout is not None and sys.stdout.isatty() else 160)
err = Screen(stderr=True)
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

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME|URL",
        envvar="RESURGE_CLUSTER",
        show_envvar=False,
        help="A cluster of clusters.yaml, or http://host:8265 (RESURGE_CLUSTER).",
    ),
]


def write_anything() -> None:
    """Let every text be written, whatever the locale: what it lacks is written out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write text for programs, as it is."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head -1` has seen enough
        stop_writing()


def flush() -> None:
    """Write what is still to be written, as far as that can be done."""
    try:
        write("")
    except (OSError, ValueError):  # a full disk, of which was spoken; or it is closed
        stop_writing()


def become(command: list[str], settings: Mapping[str, str] | None = None) -> None:
    """Go on as a server that is installed beside this Python, with more in its environment."""
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    executable = shutil.which(command[0], path=beside_python)
    if executable is None:
        raise ResurgeError(f"{command[0]!r} is not installed beside {sys.executable}")
    flush()
    os.execve(executable, command, {**os.environ, **(settings or {})})


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a Ctrl-C ends the command in good order, and so does a batch system's kind request or
    a terminal that is closed. What is ignored already stays so: `nohup`, a job in the background.
    """
    kept = {number: signal.getsignal(number) for number in STOPPING}

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):  # often come together, and once is enough
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGHUP:
            _print_nowhere()
        raise Stopped

    for number, handler in kept.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        err.print("Stopped. What is finished is kept; the same command goes on from here.")
        raise typer.Exit(EXIT_STOPPED) from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _print_nowhere() -> None:
    """The terminal is gone, and to write to it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def warn(text: str) -> None:
    """Something that deserves attention and stops nothing."""
    err.print(f"warning: {text}", style="yellow", soft_wrap=True)


def warn_of_doubts(job: Job) -> None:
    """What the job's sweep may not be meant to mean; a search's at the ends of its space."""
    from orchestrator.plan.doubts import doubts

    plan = job.plan if job.sweep.search is None else job.planner.corners()
    for doubt in doubts(plan.trials, job.sweep.base):
        warn(doubt)


def warn_of(job: Job) -> None:
    """What is not as it was when the job's sweep was run."""
    for remark in job.remarks():
        warn(remark)
