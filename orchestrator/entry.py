"""A file of the store, as a listing shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file: its path below the store's root, its size, and when it changed (seconds of 1970)."""

    path: str
    size_bytes: int
    changed_s: float
