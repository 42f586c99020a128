"""Folders, files, databases and ports that a user names: what is meant, what may be used.

A sweep file is data: whoever reads another's must not fear for files of their own. It may name a
new place, or one that is of its kind already; the command line and the environment may name any.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from orchestrator.core.errors import ResurgeError

SQLITE, JOURNAL = "sqlite:///", "journal://"
PlaceKind = Literal["store", "mlflow", "search.storage"]
_SERVERS = ("http", "https", "postgresql", "mysql", "mariadb", "mssql", "oracle", "cockroachdb")
_TABLES = {"mlflow": "experiments", "search.storage": "studies"}
_NEW_FILES = (".db", ".sqlite", ".sqlite3", ".log", ".journal", ".jsonl")
_STORE_FOLDERS = ("records", "objects", "sweeps", "failures", "checkpoints", "quarantine")
_WHAT = {
    "store": "a store of Resurge's",
    "mlflow": "a database of MLflow's",
    "search.storage": "a database or a journal of Optuna's",
}


def variable(name: str) -> str | None:
    """What the environment says; a variable that is set to nothing says nothing."""
    value = os.environ.get(name, "")
    return value if value.strip() else None


def user_path(path: str | Path, what: str) -> Path:
    """The absolute path that a user means: `~` and `~name` are homes.

    Args:
        what: what names it, for the error: "--home".

    Raises:
        ResurgeError: there is no such user, or no file can be called so.
    """
    try:
        if "\0" in str(path):
            raise ValueError("a path has no NUL")
        return Path(path).expanduser().absolute()
    except RuntimeError:
        user = str(path).partition("/")[0]
        why = f"there is no user {user[1:]!r} on this machine"
    except ValueError as error:
        why = str(error)
    raise ResurgeError(f"{what}: cannot use {str(path)!r}: {why}")


def store_place(location: str, what: str) -> str:
    """A store's folder as an absolute path; a bucket or a file:// as it is."""
    return location if "://" in location else str(user_path(location, what))


def database_place(url: str, what: str) -> str:
    """A database's URL; the file of a SQLite one, or of a journal, as an absolute path."""
    path, query = _sqlite_path(url)
    if path is not None and path not in ("", ":memory:") and not path.startswith("file:"):
        return sqlite_url(user_path(path, what)) + (f"?{query}" if query else "")
    if url.startswith(f"{JOURNAL}~"):
        return f"{JOURNAL}{user_path(url.removeprefix(JOURNAL), what)}"
    return url


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, wherever it is: a `?` would begin the URL's options."""
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def file_of(url: str) -> Path | None:
    """The file of a SQLite or journal URL; None for a server."""
    path, _ = _sqlite_path(url)
    if path is not None:
        return Path(path)
    return Path(url.removeprefix(JOURNAL)) if url.startswith(f"{JOURNAL}/") else None


def _sqlite_path(url: str) -> tuple[str | None, str]:
    """The path that a SQLite URL of any driver has, and its options."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None, ""
    path, _, query = rest.removeprefix("/").partition("?")
    return unquote(path), query


def check_named_by_file(kind: PlaceKind, location: str, own: Iterable[Path]) -> None:
    """Refuse a place that a sweep file names and that may be a file of its reader's.

    Args:
        location: as `store_place` or `database_place` gives it.
        own: folders of Resurge's that may be hidden (the home), and the working directory.

    Raises:
        ResurgeError: it is neither new nor of its kind, or lies among hidden files.
    """
    path = _local(kind, location)
    if path is None:
        return
    why = _why_not(kind, path, [Path(os.path.abspath(folder)) for folder in own])
    if why is not None:
        raise ResurgeError(
            f"{kind}: a sweep file may not use {str(path)!r}: {why}. If it is meant, give it "
            f"on the command line: {kind}=…"
        )


def _local(kind: PlaceKind, location: str) -> Path | None:
    """Where on this machine a place is; None for a server or a bucket."""
    scheme, colon, _ = location.partition("://")
    if kind == "store":
        if scheme == "file":
            return Path(unquote(urlsplit(location).path))
        return None if colon else Path(location)
    if colon and scheme.partition("+")[0] in _SERVERS:
        return None
    path = file_of(location)
    if path is None or str(path) in (".", ":memory:") or str(path).startswith("file:"):
        allowed = f"{SQLITE}FILE, a server's URL" + (
            " or journal:///FILE" if kind == "search.storage" else ""
        )
        raise ResurgeError(f"{kind}: a sweep file may name {allowed} but names {location!r}")
    return path


def _why_not(kind: PlaceKind, path: Path, own: list[Path]) -> str | None:
    real, written = Path(os.path.realpath(path)), Path(os.path.abspath(path))
    if os.path.lexists(path) and not (kind == "store" and _is_empty_folder(real)):
        return None if _is_theirs(kind, real) else f"it is there already and is not {_WHAT[kind]}"
    inside = max(
        (f for f in own if written.is_relative_to(f)), key=lambda f: len(f.parts), default=None
    )
    around = Path(os.path.realpath(inside)) if inside else Path("/")
    if not real.is_relative_to(around):
        return f"a link leads from {inside} to {real}"
    if hidden := [part for part in real.relative_to(around).parts if part.startswith(".")]:
        return f"{hidden[0]!r} is hidden"
    if kind != "store" and real.suffix not in _NEW_FILES:
        return f"a new file of a database must end in one of {', '.join(_NEW_FILES)}"
    return None


def _is_empty_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not any(path.iterdir())
    except OSError:
        return False


def _is_theirs(kind: PlaceKind, path: Path) -> bool:
    """Whether a place that exists is marked as one of its kind. Nothing is written."""
    if kind == "store":
        folders = [path / name for name in _STORE_FOLDERS]
        has_some = any(folder.is_dir() for folder in folders)
        return has_some and not any(folder.is_symlink() for folder in folders)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        begin = stream.read(4096)
    if begin.startswith(b"SQLite format 3\0"):
        return _has_table(path, _TABLES[kind])
    return kind == "search.storage" and _is_journal(begin)


def _has_table(path: Path, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    try:
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            return database.execute(query, (name,)).fetchone() is not None
        finally:
            database.close()
    except sqlite3.Error:
        return False


def _is_journal(begin: bytes) -> bool:
    """Whether the first line is an operation of Optuna's journal."""
    try:
        first = json.loads(begin.splitlines()[0])
    except (ValueError, IndexError, RecursionError):
        return False
    return isinstance(first, dict) and {"op_code", "worker_id"} <= first.keys()


def refuse_used(port: int, host: str = "127.0.0.1") -> None:
    """Say before a server is started that it cannot listen there.

    Raises:
        ResurgeError: another program has the port, or only root may.
    """
    try:
        with socket.socket() as listener:
            # As servers do: the port of one that has just ended is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        why = error.strerror or error
        raise ResurgeError(f"port {port} cannot be used ({why}): name another by --port") from error
