"""What a submitted sweep takes along: its file, the user's plug-ins, the code that planned it.

The code travels as Ray's `py_modules`, apart from the sweep: Ray names packages by their content,
and what a cluster has already is not sent again. Credentials never travel.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.cluster.clusters_file import Cluster
from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import user_path, variable
from orchestrator.core.redact import has_credentials
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse

PLUGINS = "plugins"
MAKING = Path("workers", "shapes", "making")
MAX_PLUGINS_BYTES = 20_000_000
STOP_WAIT_S = 150
"""How long a cancelled sweep has to end: its workers stop at once, MLflow is brought up to date."""
_PATH_SETTINGS = ("path", "source", "config", "clip", "model")
_NO_PATHS = ("name", "concept", "store", "mlflow", "seeds", "keep", "resources")


@dataclass(frozen=True)
class Freight:
    """A part of a shipment, for telling its size."""

    what: str
    files: int
    size_bytes: int

    def __str__(self) -> str:
        count = f"{self.files} file{'s' if self.files != 1 else ''}"
        return f"{self.what} {_size(self.size_bytes)} ({count})"


@dataclass(frozen=True)
class Shipment:
    """A sweep packed for a cluster.

    `working_dir` and `modules` are local folders; `environment` is what the job is told; `content`
    is a digest of what the sweep means.
    """

    sweep: str
    content: str
    entrypoint: str
    working_dir: Path
    modules: tuple[Path, ...]
    environment: Mapping[str, str]
    freight: tuple[Freight, ...]


def pack(sweep: Sweep, overrides: Sequence[str], cluster: Cluster, folder: Path) -> Shipment:
    """Copy what is to be sent into an empty folder.

    Raises:
        ResurgeError: the sweep cannot run on that cluster as it is.
    """
    environment = shipped_environment(sweep, cluster)
    working_dir, code = folder / "job", folder / "code"
    working_dir.mkdir()
    text, changes = _written(sweep, overrides)
    file = working_dir / f"{sweep.name}.yaml"
    file.write_text(text, encoding="utf-8")
    freight = [Freight("sweep", 1, file.stat().st_size)]
    if plugins := variable("RESURGE_PLUGINS"):
        freight.append(_pack_plugins(user_path(plugins, "RESURGE_PLUGINS"), working_dir / PLUGINS))
        environment |= {"RESURGE_PLUGINS": PLUGINS}
    copied = [_copy(source, file, code) for source, file in _code()]
    freight.append(Freight("code", len(copied), sum(copied)))
    command = "run" if sweep.search is None else "search"
    return Shipment(
        sweep.name,
        sha256(sweep.canonical()),
        _entrypoint(command, file.name, changes, cluster.entry.home),
        working_dir,
        tuple(sorted(code.iterdir())),
        environment,
        tuple(freight),
    )


def shipped_environment(sweep: Sweep, cluster: Cluster) -> dict[str, str]:
    """Where the head finds the store, MLflow and the studies; never a credential.

    Raises:
        ResurgeError: there is no store that every machine sees, or a URL carries a password.
    """
    from orchestrator.store.buckets import check_location

    given = {}
    for setting in ("store", "mlflow", "studies"):
        variable = f"RESURGE_{setting.upper()}"
        if value := getattr(cluster.entry, setting) or os.environ.get(variable):
            given[variable] = value
    for name, value in given.items():
        if has_credentials(value):
            raise ResurgeError(
                f"{name} carries a password in its URL and would be readable by everyone who sees "
                "the job: take it out of the URL. On the cluster's machines set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow, and name a "
                "file with database passwords in PGPASSFILE"
            )
    store = sweep.store or given.get("RESURGE_STORE")
    if store is None:
        raise ResurgeError(
            "the cluster's machines need a store that all of them see: set `store:` in the "
            "cluster's entry or in the sweep, or RESURGE_STORE, to s3://bucket/prefix or to a "
            "folder that is mounted everywhere"
        )
    if "://" not in store and not store.startswith("/"):
        raise ResurgeError(
            f"the store {store!r} is a folder relative to this one, which the cluster has not: "
            "give its whole path, /shared/folder, or s3://bucket/prefix"
        )
    if "://" in store and not store.startswith("file:///"):
        check_location(store)
    telemetry = os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true")
    return {**given, "MLFLOW_DISABLE_TELEMETRY": telemetry}


def runtime_env(shipment: Shipment) -> dict[str, Any]:
    """Ray's description of the job's surroundings."""
    # Ray's own 3 s between the request to stop and the kill are too few to leave in order.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    return {
        "working_dir": str(shipment.working_dir),
        "py_modules": [str(module) for module in shipment.modules],
        "env_vars": {**shipment.environment, **patience},
    }


def local_paths(sweep: Sweep) -> list[str]:
    """Files and folders of this machine that the sweep names, and that are not sent along.

    Raises:
        ResurgeError: some are relative to the working directory, which the cluster has not.
    """
    values = {k: v for k, v in sweep.canonical().items() if k not in _NO_PATHS}
    found = list(dict.fromkeys(_paths_in(values)))
    relative = [path for path in found if not path.startswith(("/", "~"))]
    if relative:
        raise ResurgeError(
            f"the sweep names {', '.join(map(repr, relative))} relative to this folder, and files "
            "of this machine are not sent to a cluster. Put them where every machine of the "
            "cluster sees them under the same path, and give the whole path: /shared/…"
        )
    return found


def _paths_in(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths_in(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths_in(inner, key)
    elif isinstance(value, str) and (key in _PATH_SETTINGS or "/" in value) and _is_here(value):
        yield value


def _is_here(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a NUL
        return False


def _written(sweep: Sweep, overrides: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The file's own text with the changes to it, so that MLflow shows what was written; the whole
    sweep as JSON where that would mean something else, or needs files that stay here.
    """
    try:
        if not sweep.grid.reads_files and parse(sweep.source, None, overrides) == sweep:
            return sweep.source, overrides
    except ResurgeError:
        pass  # a credential was taken out of it, or it is that of an earlier run
    return json.dumps(sweep.canonical(), indent=1), ()


def _entrypoint(command: str, file: str, changes: Sequence[str], home: str) -> str:
    """A shell command; `exec`, so that a request to stop reaches Resurge itself; `-P`, so that no
    folder in which it starts is searched for `orchestrator` and `workers` before what was sent.
    """
    folder = f'"$HOME"{shlex.quote(home[1:])}' if home.startswith("~") else shlex.quote(home)
    arguments = " ".join(shlex.quote(text) for text in ("--", file, *changes))
    return f"exec python -P -m orchestrator.cli {command} --home {folder} {arguments}"


def _pack_plugins(folder: Path, to: Path) -> Freight:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not _is_left_out(path.relative_to(folder).parts)]
    size_bytes = sum(path.stat().st_size for path in files)
    if size_bytes > MAX_PLUGINS_BYTES:
        raise ResurgeError(
            f"the folder of RESURGE_PLUGINS has {_size(size_bytes)} and goes along with every "
            f"sweep, up to {_size(MAX_PLUGINS_BYTES)}: keep plug-ins in a folder of their own, and "
            "weights and data where every machine of the cluster sees them"
        )
    to.mkdir()
    for path in files:
        _copy(path, path.relative_to(folder), to)
    return Freight("plug-ins", len(files), size_bytes)


def _is_left_out(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in parts)


def _code() -> Iterator[tuple[Path, Path]]:
    """Our own files, and their paths below the folder that holds both packages; how the bundled
    model was made stays here.
    """
    root = Path(orchestrator.__file__).parents[1]
    for package in ("orchestrator", "workers"):
        for path in sorted((root / package).rglob("*")):
            inside = path.relative_to(root)
            is_ours = path.suffix == ".py" or path.name == "py.typed" or "weights" in inside.parts
            is_left_out = _is_left_out(inside.parts) or inside.is_relative_to(MAKING)
            if is_ours and path.is_file() and not is_left_out:
                yield path, inside


def _copy(source: Path, inside: Path, folder: Path) -> int:
    """Copy a file; its size in bytes."""
    target = folder / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target.stat().st_size


def _size(size_bytes: int) -> str:
    if size_bytes < 1_000_000:
        return f"{max(1, round(size_bytes / 1000))} kB"
    return f"{size_bytes / 1_000_000:.1f} MB"
