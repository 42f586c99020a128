"""`resurge list`, `schema` and `doctor`: what a sweep file can say, what is there already."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from orchestrator.cli.common import EXIT_DONE, EXIT_FAILED, ClusterOption, HomeOption, out, write
from orchestrator.core.errors import ResurgeError


def list_known(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="bases, unlearners, datasets, evaluations, metrics, executors, or sweeps",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, with all it has to say.")
    ] = None,
    home: HomeOption = None,
    cluster: ClusterOption = None,
) -> None:
    """List what a sweep file can name, by kind; all of one; or the sweeps that a store knows.

    `resurge list unlearners uce` shows a method's equation, cost, settings and presets, and what of
    it is compared with its released code. `resurge list sweeps` shows each with its state, how far
    it is, and when it changed last.
    """
    from orchestrator.cli.show.plugins import show_plugins

    if kind != "sweeps":
        show_plugins(kind, name, out)
        return
    if name is not None:
        raise ResurgeError(f"sweeps are listed together; `resurge status {name}` shows one")
    from orchestrator.cli.show.sweeps import show_sweeps
    from orchestrator.cluster.view import home_at

    show_sweeps(home_at(home, cluster), out)


def schema() -> None:
    """Print the JSON Schema of sweep files, for editors.

    With it saved as resurge.schema.json, a first line
    `# yaml-language-server: $schema=resurge.schema.json` makes an editor complete the file.
    """
    from orchestrator.sweepfile.schema import json_schema

    write(json.dumps(json_schema(), indent=2) + "\n")


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
    from orchestrator.cli.doctor import open_base
    from orchestrator.cli.show.doctor import show_checks

    given = {"revision": revision, "config": config, "torch_dtype": torch_dtype}
    settings = {name: value for name, value in given.items() if value is not None}
    model = open_base(base, settings | ({"allow_pickle": True} if allow_pickle else {}))
    # transformers warns of image processors that nothing here uses when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with out.status("starting") as status:
        from workers.doctor.checks import examine

        checks = list(examine(model, status.update))
    show_checks(checks, out)
    failed = any(check.status == "fail" for check in checks)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_DONE)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "schema": schema,
    "list": list_known,
    "doctor": doctor,
}
