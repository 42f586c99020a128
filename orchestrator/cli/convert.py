"""`resurge convert`: models of others as folders that a sweep can name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.common import out
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.places import user_path

KINDS = ("gcd",)


def convert(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="gcd: GIPHY's celebrity detector.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint.")],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="FILE", help="Its classes: labels.csv.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A folder that is not yet.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read a checkpoint that is a pickle.")
    ] = False,
) -> None:
    """Write a judge's checkpoint as a folder of transformers, for `face_id: {model: FOLDER}`.

    Weights that are a pickle are read with torch's weights-only reader, and only if --allow-pickle
    says so; what is written is safetensors. Exit code 0: written; 2: bad input.
    """
    if kind not in KINDS:
        raise ResurgeError(f"unknown KIND {kind!r}{suggest(kind, KINDS)}")
    # transformers warns of image processors that nothing here uses when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from workers.released.gcd import convert as write

    paths = (user_path(file, "FILE"), user_path(labels, "--labels"), user_path(to, "--to"))
    classes = write(*paths, allow_pickle)
    out.print(f"Wrote {to}: {classes} people, safetensors.", soft_wrap=True)
    out.print(f"In a sweep: face_id: {{model: {to}}}", soft_wrap=True)


COMMANDS: Mapping[str, Callable[..., None]] = {"convert": convert}
