"""The store's folders, and a file in it as a listing shows it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.errors import StoreError

RECORDS = "records"
OBJECTS = "objects"
CHECKPOINTS = "checkpoints"
CHECKPOINT = "checkpoint.json"
FAILURES = "failures"
SWEEPS = "sweeps"
HEADS = "heads"
LEASES = "leases"
SCRATCH = "scratch"
QUARANTINE = "quarantine"
FOLDERS = frozenset(
    (RECORDS, OBJECTS, CHECKPOINTS, FAILURES, SWEEPS, HEADS, LEASES, SCRATCH, QUARANTINE)
)


def json_path(folder: str, name: str) -> str:
    """Where the folder's JSON file of that name is: a record, a failure, a sweep, a head."""
    return f"{folder}/{name}.json"


def name_in(path: str) -> str:
    """The inverse: the name without the folder and the ending."""
    return path.rpartition("/")[2].removesuffix(".json")


def is_path(path: str) -> bool:
    """Whether its parts, between '/', are names that cannot leave the store, and text."""
    parts = path.split("/")
    try:
        path.encode()  # a file's name that is no text comes from the system as if it were
    except UnicodeEncodeError:
        return False
    is_inside = not any(part in ("", ".", "..") for part in parts)
    return is_inside and "\\" not in path and "\0" not in path


def check_path(path: str) -> None:
    """Raise if a path could leave the store: names in it come from sweep files and records.

    Raises:
        StoreError: it has an empty part, `.`, `..`, a backslash or a NUL.
    """
    if not is_path(path):
        raise StoreError(
            f"{path!r} is no path in a store: its parts, between '/', must be names, not empty, "
            "'.' or '..', without backslash and NUL"
        )


@dataclass(frozen=True)
class Entry:
    """A file: its path below the store's root, its size, and when it changed (seconds of 1970)."""

    path: str
    size_bytes: int
    changed_s: float
