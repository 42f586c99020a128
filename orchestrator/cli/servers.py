"""`resurge ui` and `resurge dashboard`: the servers of MLflow and Optuna, on loopback."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import HomeOption, SweepFile, become, out
from orchestrator.core.errors import ResurgeError
from orchestrator.core.redact import redact
from orchestrator.home import Home

Port = Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")]


def ui(
    home: HomeOption = None,
    port: Port = 5000,
) -> None:
    """Open the MLflow UI on the right store, on loopback. Ctrl-C ends it."""
    from orchestrator.core.places import refuse_used
    from orchestrator.tracking.database import check, relocate

    place = Home.find(home)
    uri = place.mlflow_uri()
    command, settings = ui_command(uri, place.artifacts, port)
    check(uri)
    refuse_used(port)
    relocate(uri, place.artifacts)
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    out.print(f"MLflow: {page} (Ctrl-C ends it)", style="bold", soft_wrap=True)
    become(command, settings)


def dashboard(
    sweep: SweepFile,
    home: HomeOption = None,
    port: Port = 8080,
) -> None:
    """Open optuna-dashboard on a search's studies, on loopback. Ctrl-C ends it."""
    from orchestrator.run.job import open_results
    from orchestrator.study.dashboard import serve, studies_app

    job = open_results(sweep, Home.find(home))
    if not job.is_search:
        raise ResurgeError(f"sweep {job.name!r} has no `search` block, and so no studies")
    app = studies_app(job.studies_uri)
    shown = f"Studies: http://127.0.0.1:{port} (Ctrl-C ends it)"
    serve(app, port, lambda: out.print(shown, style="bold", soft_wrap=True))


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
    # MLflow's own patterns of private addresses let names such as 10.example.org pass.
    command += ["--allowed-hosts", "127.0.0.1,127.0.0.1:*,localhost,localhost:*"]
    # By default it imports from the folder in which the user stands. This one has our scripts.
    command += ["--uvicorn-opts", f"--app-dir={shlex.quote(str(Path(sys.executable).parent))}"]
    # Jobs evaluate language models; their processes are most of what a server takes of a machine.
    return command, {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


COMMANDS: Mapping[str, Callable[..., None]] = {"ui": ui, "dashboard": dashboard}
