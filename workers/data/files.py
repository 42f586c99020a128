"""Files and folders that settings name: where they are, and the digest of what is read of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from orchestrator.core.errors import DataError
from orchestrator.core.redact import redact_urls
from orchestrator.core.text import shortened

LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "._")
"""Beginnings of what file managers leave in folders; nothing reads it, and it changes by itself."""
OF_TOOLS = (".git", ".cache")
"""Where git and `hf download` remember when they did what; no loader reads it."""
RACY_NS = 2_000_000_000
"""Coarser than any file system's clock."""
MAX_DEAD_SHOWN = 5
LONGEST_SHOWN = 120


def place(text: str) -> Path:
    """A path as its user means it; the home of a user who is not known stays as it is written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _is_a_place(text: str) -> str:
    shown = repr(shortened(text, LONGEST_SHOWN))
    if "://" in text:
        raise ValueError(
            f"{redact_urls(shown)} is a URL, which is not read; download what is there and name "
            "the folder or file"
        )
    try:
        Path(text).expanduser().exists()
    except RuntimeError:
        raise ValueError(f"{shown} begins with the home of a user who is not known here") from None
    except OSError as error:
        raise ValueError(f"{shown} cannot be looked at: {error.strerror}") from None
    return text


PlaceText = Annotated[str, AfterValidator(_is_a_place)]
"""A setting that names a folder, a file or a repository, which need not be there yet."""


def digest_of(root: Path, suffixes: tuple[str, ...] | None = None, also: Iterable[str] = ()) -> str:
    """sha256 of names and contents: a folder's files, all or those of `suffixes`, or one file.

    Links are followed, to files and to folders. `also` are names, as seen from the folder, of files
    that are read wherever they are: those of them that are there and not among the others are
    hashed behind them.

    Raises:
        DataError: a link leads nowhere or into a folder that it is in, or a file cannot be read.
    """
    total = hashlib.sha256()
    files = files_of(root, suffixes)
    named = sorted({PurePosixPath(name).as_posix() for name in also} - files.keys())
    files |= {name: root / name for name in named if os.path.isfile(root / name)}
    for name, file in files.items():
        total.update(f"{name}\0{digest_of_file(file)}\n".encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """sha256 of some files' names in a folder and their contents, wherever links lead.

    Raises:
        DataError: one cannot be read.
    """
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(folder).as_posix()}\0{digest_of_file(file)}\n".encode())
    return total.hexdigest()


def files_of(root: Path, suffixes: tuple[str, ...] | None = None) -> dict[str, Path]:
    """A folder's files by their names in it, links followed; or one file, by the name ''.

    Raises:
        DataError: as `digest_of`.
    """
    if root.is_file():
        return {"": root}
    found, dead = [], []
    for path in _below(root):
        if suffixes is not None and path.suffix not in (*suffixes, ""):
            continue
        if path.is_file():
            found.append(path)
        elif path.is_symlink():  # to a folder it would have been followed
            dead.append(path)
    if dead:
        raise dead_links(root, dead)
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(found)
        if suffixes is None or path.suffix in suffixes
    }


def _below(root: Path) -> Iterator[Path]:
    """Everything in a folder that is no folder, however deep, whatever links it is behind."""
    todo = [(root, frozenset[tuple[int, int]]())]
    while todo:
        folder, above = todo.pop()
        try:
            status = folder.stat()
            me = (status.st_dev, status.st_ino)
            if me in above:
                raise DataError(
                    f"{folder} is a link to a folder that it is in, so the files below it have no "
                    "end; remove the link"
                )
            entries = [
                entry
                for entry in os.scandir(folder)
                if not entry.name.startswith(LITTER) and entry.name not in OF_TOOLS
            ]
        except OSError as error:
            raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
        for entry in entries:
            path = Path(entry.path)
            if path.is_dir():
                todo.append((path, above | {me}))
            else:
                yield path


def dead_links(root: Path, dead: Iterable[Path]) -> DataError:
    """What to say of links in a folder that lead to no file."""
    dead = sorted(dead)
    shown = ", ".join(
        f"{path.relative_to(root)} -> {os.readlink(path)}" for path in dead[:MAX_DEAD_SHOWN]
    )
    more = f" and {len(dead) - MAX_DEAD_SHOWN} more" if len(dead) > MAX_DEAD_SHOWN else ""
    return DataError(
        f"{root} has links that lead to no file: {shown}{more}; put the files there, or remove the "
        "links"
    )


def digest_of_file(path: Path) -> str:
    """sha256 of a file's contents.

    Raises:
        DataError: it cannot be read.
    """
    try:
        marks = _marks(path)
        # A file that was just changed may change again without its marks telling.
        is_settled = time.time_ns() - max(marks[-2:]) > RACY_NS
        return (_sha256 if is_settled else _sha256.__wrapped__)(path.resolve(), *marks)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def marks_of(root: Path) -> tuple[object, ...]:
    """What tells a folder's files from what they were, without reading them.

    Raises:
        DataError: as `digest_of`.
    """
    return tuple((name, *_marks(file)) for name, file in files_of(root).items())


def _marks(path: Path) -> tuple[int, ...]:
    """The time of modification can be set back; that of the change of the entry, last, cannot."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=4096)
def _sha256(path: Path, *_marks: int) -> str:
    """Read once a process, as long as its marks stay: weights are gigabytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
