"""What was read of a local store before, packed: thousands of small files are read as one.

A copy and no more: every entry carries the stamp (size, time, inode) of the file that it was read
from, and is passed over once that file is another. Where it is damaged, locked or cannot be
written, the files are read as if it were not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from pathlib import Path

NAME = ".index.sqlite"
PENDING = 512
"""So many entries are written at a time."""
SCHEMA = "CREATE TABLE IF NOT EXISTS read (path TEXT PRIMARY KEY, stamp TEXT, seal BLOB, data BLOB)"


def stamp_of(path: Path) -> str | None:
    """What a file looks like from outside; None if there is none.

    To be asked before the file is read: whoever replaces it meanwhile gives it another stamp.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"


class Index:
    """The packed copy beside a store's files, in `folder`. May be used from several threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()
        self._pending: dict[str, tuple[str, bytes]] = {}
        self._opened: sqlite3.Connection | None = None
        self._is_off = False

    def get(self, path: str, stamp: str) -> bytes | None:
        """What was read of the file when it had that stamp."""
        with self._lock:
            if path in self._pending:
                known, data = self._pending[path]
                return data if known == stamp else None
            asked = "SELECT stamp, seal, data FROM read WHERE path = ?"
            try:
                row = None if self._is_off else self._open().execute(asked, (path,)).fetchone()
            except sqlite3.Error as error:
                self._trouble(error)
                return None
        if row is None or row[0] != stamp or row[1] != _seal(path, stamp, row[2]):
            return None
        data = row[2]
        return bytes(data)

    def put(self, path: str, stamp: str, data: bytes) -> None:
        """Remember what was read; it is written when there is some, or by `flush`."""
        with self._lock:
            self._pending[path] = (stamp, data)
            is_full = len(self._pending) >= PENDING
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; while somebody else writes, it is let go: it can be read again."""
        with self._lock:
            pending, self._pending = self._pending, {}
            if not pending or self._is_off:
                return
            rows = [(p, s, _seal(p, s, data), data) for p, (s, data) in pending.items()]
            try:
                with self._open() as connection:
                    connection.executemany("INSERT OR REPLACE INTO read VALUES (?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                self._trouble(error)

    def _open(self) -> sqlite3.Connection:
        if self._opened is None:
            opened = sqlite3.connect(self.path, timeout=0.2, check_same_thread=False)
            # What a crash takes of it can be read again.
            opened.execute("PRAGMA synchronous = OFF")
            opened.execute(SCHEMA)
            self._opened = opened
        return self._opened

    def _trouble(self, error: sqlite3.Error) -> None:
        """Somebody else has it for a moment; or it is of no use, and is begun anew next time."""
        if "locked" in str(error):
            return
        self._is_off = True
        with contextlib.suppress(sqlite3.Error):
            if self._opened is not None:
                self._opened.close()
        self._opened = None
        is_of_the_system = isinstance(error, sqlite3.OperationalError)  # read-only, a full disk
        if not is_of_the_system or "no such" in str(error):
            with contextlib.suppress(OSError):
                self.path.unlink()


def _seal(path: str, stamp: str, data: bytes) -> bytes:
    """Tells what was written from what a disk made of it."""
    told = f"{path}\n{stamp}\n".encode()
    return hashlib.blake2b(told + data, digest_size=8).digest()
