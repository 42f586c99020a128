"""The store's files: by path below its root, on a local folder, s3:// or gs://.

Every operation may be called from several processes at a time, and is tried again for as long as
`Patience` lasts where what is wrong may pass.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from orchestrator.core.errors import StoreError
from orchestrator.store.buckets import Bucket, check_location
from orchestrator.store.paths import FOLDERS, QUARANTINE, Entry, check_path, is_path
from orchestrator.store.patience import Patience

T = TypeVar("T")
log = logging.getLogger("resurge.store")


class NotAFile(ValueError):
    """Where a file should be is something that is none, or that nobody may read: it says what."""


class LocalFolder:
    """Files below a local folder. Paths are relative; errors are the system's.

    A file is written aside, under a name that begins with a dot, and then renamed. What stands
    where a file or a folder of the store belongs and is none (a folder, a link that leads nowhere)
    harms nothing but that file: it makes room for what is written, in quarantine/.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError), self._absent_below(folder):
            return os.listdir(self._at(folder))
        return []

    def tops(self) -> list[str]:
        """What is right below the root."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.listdir(self.root)
        return []

    def walk(self, folder: str) -> list[Entry]:
        """Those that vanish on the way are left out; those that are being written are not. A link
        that leads nowhere, or to a folder, is an entry of its own.
        """
        self.check_top(folder)
        found = []
        top = self._at(folder)

        def tell(error: OSError) -> None:
            if isinstance(error, FileNotFoundError):
                return
            if error.filename == top:
                raise error
            log.warning("cannot look into %s: %s", error.filename, error.strerror)

        for parent, folders, names in os.walk(top, onerror=tell):
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in (*names, *links):
                at = os.path.join(parent, name)
                path = os.path.relpath(at, self.root)
                entry = self.info(path)
                if entry is None and os.path.islink(at):
                    stat = os.lstat(at)
                    entry = Entry(path, stat.st_size, stat.st_mtime)
                if entry is not None:
                    found.append(entry)
        return found

    def info(self, path: str) -> Entry | None:
        try:
            with self._absent_below(path):
                found = os.stat(self._at(path))
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP:
                return None
            raise
        return None if S_ISDIR(found.st_mode) else Entry(path, found.st_size, found.st_mtime)

    def read(self, path: str) -> bytes:
        at = self._at(path)
        try:
            with self._absent_below(path), open(at, "rb", opener=_without_waiting) as stream:
                if S_ISREG(os.fstat(stream.fileno()).st_mode):
                    return stream.read()
        except OSError as error:
            if (what := fault_of_file(at)) is not None:
                raise NotAFile(f"it {what}") from error
            raise
        raise NotAFile("it is no regular file")

    def write(self, path: str, data: bytes) -> None:
        def work() -> None:
            with self._aside(path) as aside:
                Path(aside).write_bytes(data)

        self._making_room(path, work)

    def put(self, source: Path, path: str) -> None:
        """Move `source` here."""
        # Its age is that of the commit, not of the work: `gc` spares what is young.
        os.utime(source)
        self._making_room(path, lambda: self._put(source, path))

    def _put(self, source: Path, path: str) -> None:
        os.makedirs(os.path.dirname(self._at(path)), exist_ok=True)
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
        with self._absent_below(path):
            os.replace(self._at(path), self._at(to))

    def delete(self, path: str) -> None:
        at = self._at(path)
        if os.path.isdir(at) and not os.path.islink(at):
            self._set_aside(path)
            return
        with self._absent_below(path):
            os.unlink(at)

    def delete_folder(self, folder: str) -> None:
        at = self._at(folder)
        if os.path.islink(at) or os.path.isfile(at):
            os.unlink(at)
        while os.path.isdir(at):
            with suppress(FileNotFoundError):  # somebody else deletes it too
                shutil.rmtree(at)

    def prune(self, folder: str) -> None:
        """Remove the folder and those above it, as far as they are empty; never the top ones."""
        while "/" in folder:
            try:
                os.rmdir(self._at(folder))
            except (FileNotFoundError, NotADirectoryError):
                pass  # somebody else was faster
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    return
                raise
            folder = os.path.dirname(folder)

    def check_top(self, path: str) -> None:
        """Raise if the store's folder that the path is in is a link that leads nowhere, as to a
        disk that is not mounted: what it held is not lost, and must not be taken for lost.

        Raises:
            StoreError: it is.
        """
        top = self._at(path.partition("/")[0])
        if os.path.islink(top) and not os.path.exists(top):
            raise StoreError(
                f"{top} is a link that leads nowhere: bring back what it leads to (a disk that is "
                "not mounted?), or remove the link"
            )

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    @contextmanager
    def _absent_below(self, path: str) -> Iterator[None]:
        """Inside, what hangs on something that is no folder is not there."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            self.check_top(path)
            if "/" not in path and isinstance(error, NotADirectoryError):
                raise
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        except OSError as error:
            parent = path.rpartition("/")[0]
            if error.errno == errno.ELOOP and "/" in parent and not os.path.isdir(self._at(parent)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise

    def _making_room(self, path: str, work: Callable[[], None]) -> None:
        """Do the work, which writes to `path`; first without what stands in its way."""
        try:
            work()
        except OSError:
            parts = path.split("/")
            for count in range(2, len(parts) + 1):
                at = "/".join(parts[:count])
                is_folder = os.path.isdir(self._at(at))
                if count == len(parts):
                    is_in_the_way = is_folder and not os.path.islink(self._at(at))
                else:
                    is_in_the_way = os.path.lexists(self._at(at)) and not is_folder
                if is_in_the_way:
                    self._set_aside(at)
                    work()
                    return
            raise

    def _set_aside(self, path: str) -> None:
        """Move what is no file of ours to quarantine/, where it keeps its path."""
        name = path.rpartition("/")[2].partition(".")[0]
        folder = f"{QUARANTINE}/{name}-{uuid.uuid4().hex[:8]}"
        self.move(path, f"{folder}/{path}")
        log.warning("%s stood in the way of a file and was set aside in %s", path, folder)

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


def fault_of_file(path: str | Path) -> str | None:
    """What is there in place of a file that can be read; None: such a file, or nothing at all."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    if S_ISLNK(mode):
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return "is a link that leads nowhere"
    if S_ISDIR(mode):
        return "is a folder"
    if not S_ISREG(mode):
        return "is no regular file"
    return None if mode & 0o444 else "may be read by nobody, by its mode"


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe too at once, where nobody may ever write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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

    def has_any(self) -> bool:
        """Whether one of a store's folders is there: any that was ever written to has some."""
        tops = self.patience.call(f"list {self.location}", self._place.tops)
        return not FOLDERS.isdisjoint(tops)

    def walk(self, folder: str) -> list[Entry]:
        """All files below, at any depth, also those that are being written."""
        found = self._try("list", folder, self._place.walk)
        return [entry for entry in found if is_path(entry.path)]

    def list(self, folder: str) -> list[str]:
        """The names of the files and folders right below; none if there is no such folder."""
        found = self._try("list", folder, self._place.names)
        return [name for name in found if not name.startswith(".") and is_path(name)]

    def info(self, path: str) -> Entry | None:
        """A file's size and age; None if there is no such file."""
        return self._try("look at", path, self._place.info)

    def exists(self, path: str) -> bool:
        """Whether there is a file of that path."""
        return self.info(path) is not None

    def read(self, path: str) -> str | None:
        """A file's text; None if there is no such file.

        Raises:
            ValueError: it is no text, or no file (`NotAFile`).
        """
        data = self.read_bytes(path)
        return None if data is None else data.decode()

    def read_bytes(self, path: str) -> bytes | None:
        """A file's bytes; None if there is no such file.

        Raises:
            NotAFile: something else is there: damage to that one entry.
        """
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
            place.check_top(path)
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
