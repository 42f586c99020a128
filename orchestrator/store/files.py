"""The store's files: by path below its root, on a local folder, s3:// or gs://.

Every operation may be called from several processes at a time, and is tried again for as long as
`Patience` lasts where what is wrong may pass.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from orchestrator.store.buckets import Bucket, check_location
from orchestrator.store.paths import Entry, check_path
from orchestrator.store.patience import Patience

T = TypeVar("T")


class LocalFolder:
    """Files below a local folder. Paths are relative; errors are the system's.

    A file is written aside, under a name that begins with a dot, and then renamed.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._at(folder))
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> list[Entry]:
        """Those that vanish on the way are left out; those that are being written are not."""
        found = []
        for parent, _, names in os.walk(self._at(folder), onerror=_raise_unless_gone):
            for name in names:
                entry = self.info(os.path.relpath(os.path.join(parent, name), self.root))
                if entry is not None:
                    found.append(entry)
        return found

    def info(self, path: str) -> Entry | None:
        try:
            stat = os.stat(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_file = not os.path.isdir(self._at(path))
        return Entry(path, stat.st_size, stat.st_mtime) if is_file else None

    def read(self, path: str) -> bytes:
        return Path(self._at(path)).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with self._aside(path) as aside:
            Path(aside).write_bytes(data)

    def put(self, source: Path, path: str) -> None:
        """Move `source` here."""
        os.makedirs(os.path.dirname(self._at(path)), exist_ok=True)
        # Its age is that of the commit, not of the work: `gc` spares what is young.
        os.utime(source)
        try:
            os.rename(source, self._at(path))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self._aside(path) as aside:
                shutil.copyfile(source, aside)
            source.unlink()

    def move(self, path: str, to: str) -> None:
        os.makedirs(os.path.dirname(self._at(to)), exist_ok=True)
        os.replace(self._at(path), self._at(to))

    def delete(self, path: str) -> None:
        os.unlink(self._at(path))

    def delete_folder(self, folder: str) -> None:
        while os.path.isdir(self._at(folder)):
            with suppress(FileNotFoundError):  # somebody else deletes it too
                shutil.rmtree(self._at(folder))

    def prune(self, folder: str) -> None:
        """Remove the folder and those above it, as far as they are empty; never the top ones."""
        while "/" in folder:
            try:
                os.rmdir(self._at(folder))
            except FileNotFoundError:
                pass  # somebody else was faster
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    return
                raise
            folder = os.path.dirname(folder)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    @contextmanager
    def _aside(self, path: str) -> Iterator[str]:
        """A path to write to; renamed to `path` at the end, removed if anything fails."""
        target = self._at(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        aside = f"{os.path.dirname(target)}/.{uuid.uuid4().hex}"
        try:
            yield aside
            os.replace(aside, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(aside)
            raise


class Files:
    """A store's files. `path` and `folder` are below its root, with `/` between their parts.

    Args:
        location: a folder, or a URI: file:///folder, s3://bucket/prefix, gs://bucket/prefix. The
            endpoint and the credentials of s3:// are the environment's.
        patience: how long to try again.

    Attributes:
        location: as it was given.
        root: the folder, or bucket/prefix.
        is_local: whether it is a folder, where a move is a rename.

    Raises:
        StoreError: from every method: a path that would leave the store, or trouble that does not
            pass by itself. `StoreUnavailable` for trouble that did not pass in time.
    """

    def __init__(self, location: str | Path, patience: Patience | None = None) -> None:
        self.location = str(location)
        self.patience = patience or Patience()
        self._place = _place(self.location)
        self.root = self._place.root
        self.is_local = isinstance(self._place, LocalFolder)

    def walk(self, folder: str) -> list[Entry]:
        """All files below, at any depth, also those that are being written."""
        return self._try("list", folder, self._place.walk)

    def list(self, folder: str) -> list[str]:
        """The names of the files and folders right below; none if there is no such folder."""
        found = self._try("list", folder, self._place.names)
        return [name for name in found if not name.startswith(".")]

    def info(self, path: str) -> Entry | None:
        """A file's size and age; None if there is no such file."""
        return self._try("look at", path, self._place.info)

    def exists(self, path: str) -> bool:
        """Whether there is a file of that path."""
        return self.info(path) is not None

    def read(self, path: str) -> str | None:
        """A file's text; None if there is no such file.

        Raises:
            UnicodeDecodeError: it is no text.
        """
        data = self.read_bytes(path)
        return None if data is None else data.decode()

    def read_bytes(self, path: str) -> bytes | None:
        """A file's bytes; None if there is no such file."""
        try:
            return self._try("read", path, self._place.read)
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        """Write a file in one move: readers see all of the old text or all of the new."""
        data = text.encode()
        self._try("write", path, lambda path: self._place.write(path, data))

    def put(self, source: Path, path: str) -> tuple[int, str]:
        """Bring a local file here in one move; its size in bytes and its SHA-256.

        `source` is moved where that is possible: it is not to be used afterwards.
        """
        size_bytes, digest = source.stat().st_size, sha256_of(source)
        self._try("write", path, lambda path: self._place.put(source, path))
        return size_bytes, digest

    def move(self, path: str, to: str) -> bool:
        """Give a file another path; False if there is no such file."""
        check_path(to)
        try:
            self._try("move", path, lambda path: self._place.move(path, to))
        except FileNotFoundError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Delete a file; no harm if there is none."""
        with suppress(FileNotFoundError):
            self._try("delete", path, self._place.delete)

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and all that is below; no harm if there is none."""
        with suppress(FileNotFoundError):
            self._try("delete", folder, self._place.delete_folder)

    def prune(self, folders: Iterable[str]) -> None:
        """Remove folders that are empty now, and those above them that become so."""
        if isinstance(self._place, LocalFolder):
            for folder in sorted(folders, key=len, reverse=True):
                self._try("delete", folder, self._place.prune)

    @contextmanager
    def as_local(self, path: str) -> Iterator[Path]:
        """A local path with the file's content, for reading; a copy that goes away, or itself.

        Raises:
            FileNotFoundError: of a bucket, if there is no such object.
        """
        place = self._place
        if isinstance(place, LocalFolder):
            check_path(path)
            yield Path(self.root) / path
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / os.path.basename(path)
            self._try("read", path, lambda path: place.fetch(path, local))
            yield local

    def _try(self, doing: str, path: str, work: Callable[[str], T]) -> T:
        check_path(path)
        where = f"{self.location.rstrip('/')}/{path}"
        return self.patience.call(f"{doing} {where}", lambda: work(path))


def sha256_of(path: Path) -> str:
    """A local file's SHA-256, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(location: str) -> LocalFolder | Bucket:
    if "://" not in location:
        return LocalFolder(str(Path(location).absolute()).rstrip("/"))
    if location.startswith("file:///"):
        return LocalFolder(unquote(urlsplit(location).path).rstrip("/"))
    check_location(location)
    return Bucket(location)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
