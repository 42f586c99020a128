"""`resurge ui` and `resurge dashboard`: the servers of MLflow and Optuna, on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, SweepFile, become, out
from orchestrator.core.errors import ResurgeError
from orchestrator.core.redact import redact
from orchestrator.home import Home


def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the MLflow UI on the right store, on loopback. Ctrl-C ends it."""
    place = Home.find(home)
    command, settings = ui_command(place.mlflow_uri(), place.artifacts, port)
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    out.print(f"MLflow: {page} (Ctrl-C ends it)", style="bold", soft_wrap=True)
    become(command, settings)


def dashboard(
    sweep: SweepFile,
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8080,
) -> None:
    """Open optuna-dashboard on a search's studies, on loopback. Ctrl-C ends it."""
    from orchestrator.run.job import open_results
    from orchestrator.study.study import dashboard_config

    job = open_results(sweep, Home.find(home))
    if not job.is_search:
        raise ResurgeError(f"sweep {job.name!r} has no `search` block, and so no studies")
    config = dashboard_config(job.studies_uri, port)
    out.print(f"Studies: http://127.0.0.1:{port} (Ctrl-C ends it)", style="bold", soft_wrap=True)
    # A pipe: the program that this one becomes reads it by its path, and nobody else can.
    reading, writing = os.pipe()
    os.write(writing, config.encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    become(["optuna-dashboard", "--from-config", f"/dev/fd/{reading}"])


def ui_command(uri: str, artifact_root: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that serves the MLflow UI of a database, on loopback only, and its settings.

    Any user of the machine can read a command; only its own user can read what is set for it.

    Raises:
        ResurgeError: `uri` is a server, which has its own UI.
    """
    if uri.startswith(("http://", "https://")):
        raise ResurgeError(f"MLflow is a server with its own UI: open {redact(uri)}")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(artifact_root)]
    # Jobs evaluate language models; their processes are most of what a server takes of a machine.
    return command, {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


COMMANDS: Mapping[str, Callable[..., None]] = {"ui": ui, "dashboard": dashboard}
