"""MLflow's SQLite file, looked at without MLflow: whether it can be used, whether it has what was
written to it, and where its artifacts are after its folder was moved or copied.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import file_of

BUSY_TIMEOUT_S = 5.0
_ALWAYS = {"alembic_version", "experiments", "runs", "tags", "params", "metrics"}
"""Tables of every version; where some are missing, MLflow would begin to make its own."""
_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}
"""Tables with a column that says where artifacts are."""


class TrackingError(ResurgeError):
    """MLflow cannot be used, or refused something. The store has everything all the same."""


def check(uri: str) -> None:
    """Refuse at once a file that MLflow would try to open for minutes, or make its tables in.

    Raises:
        TrackingError: it is there and no database of MLflow's, damaged or in use.
    """
    path = file_of(uri)
    if path is None or not path.exists():
        return
    if path.is_dir():
        raise TrackingError(f"MLflow's database {path} is a folder: name a file, or move it away")
    try:
        with _opened(path) as database:
            tables = _tables(database)
            if "alembic_version" in tables:
                database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        raise TrackingError(f"MLflow's database {path} cannot be used: {_why(error)}") from error
    if tables and not tables >= _ALWAYS:
        raise TrackingError(
            f"{path} is a database but not MLflow's, or not all of it (it lacks the tables "
            f"{', '.join(sorted(_ALWAYS - tables))}): name another file for MLflow, or move it away"
        )


def holds(uri: str, sweep: str, mark: str, count: int) -> bool:
    """Whether a SQLite file still has so many of a sweep's runs, shown and marked.

    False for what is no such file: only MLflow itself can tell.
    """
    path = file_of(uri)
    if path is None or not path.is_file():
        return False
    query = (
        "SELECT COUNT(DISTINCT runs.run_uuid) FROM runs "
        "JOIN experiments USING (experiment_id) "
        "JOIN tags AS sweep ON sweep.run_uuid = runs.run_uuid AND sweep.key = 'resurge.sweep' "
        "JOIN tags AS mark ON mark.run_uuid = runs.run_uuid AND mark.key = ? "
        "WHERE sweep.value = ? AND runs.lifecycle_stage = 'active' "
        "AND experiments.lifecycle_stage = 'active'"
    )
    try:
        with _opened(path) as database:
            return bool(database.execute(query, (mark, sweep)).fetchone()[0] >= count)
    except sqlite3.Error:
        return False  # opening it for writing will say why


def relocate(uri: str, artifact_root: Path) -> None:
    """Let the paths in a home's own database follow the home, which was moved or copied.

    MLflow keeps absolute paths: they would lead back into the old place, and write there. A
    database elsewhere is not the home's and stays as it is.

    Args:
        uri: the database.
        artifact_root: where its artifacts are now, beside it.

    Raises:
        TrackingError: the database cannot be written.
    """
    path, root = file_of(uri), artifact_root.absolute()
    if path is None or not path.is_file() or path.absolute().parent != root.parent:
        return
    try:
        with _opened(path) as database:
            for old in _former_roots(database, root):
                _move_artifacts(database, old, root.as_uri())
                _move_sources(database, _path_of(old).parent, root.parent)
            database.commit()
    except sqlite3.Error as error:
        raise TrackingError(f"MLflow's database {path} cannot be used: {_why(error)}") from error


def _former_roots(database: sqlite3.Connection, root: Path) -> list[str]:
    """URIs of folders of the same name at another place."""
    if "experiments" not in _tables(database):
        return []
    found = database.execute("SELECT artifact_location FROM experiments").fetchall()
    roots = set()
    for (location,) in found:
        before, ending, _ = (location or "").rpartition(f"/{quote(root.name)}/")
        if before.startswith("file://") and ending:
            roots.add(before + ending.rstrip("/"))
    return [old for old in sorted(roots) if _path_of(old).resolve() != root.resolve()]


def _move_artifacts(database: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in _LOCATIONS.items():
        if table in _tables(database):
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _move_sources(database: sqlite3.Connection, old: Path, new: Path) -> None:
    """Of the data sets, which are in the store where that is in the home."""
    before, after = (json.dumps(f"{home}/")[1:-1] for home in (old, new))
    begin = '{"uri": "'
    database.execute(
        "UPDATE datasets SET dataset_source = ? || substr(dataset_source, ?) "
        "WHERE substr(dataset_source, 1, ?) = ?",
        (
            begin + after,
            len(begin + before) + 1,
            len(begin + before),
            begin + before,
        ),
    )


def _path_of(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _tables(database: sqlite3.Connection) -> set[str]:
    found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in found}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A file that is there; `connect` alone would make it."""
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as database:
        yield database


def _why(error: sqlite3.Error) -> str:
    """What to do about it, where that is known."""
    what = str(error)
    if "locked" in what:
        return f"{what}; another program writes to it: try again when it has ended"
    if "not a database" in what or "malformed" in what:
        return f"{what}; move it away, and `resurge sync` makes it again from the store"
    return what
