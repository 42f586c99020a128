"""Errors that a user can cause. The command line prints them without a traceback."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.text import one_line, visible

LONGEST_PLACE, LONGEST_MESSAGE = 160, 2_000
"""Characters: longer ones are shown in part."""


@dataclass(frozen=True)
class Place:
    """A point of the sweep file (or of the command line) that a problem can be pinned to."""

    where: str
    file: str | None = None
    line: int | None = None

    def problem(self, what: str) -> Problem:
        """What is wrong here."""
        return Problem(what, self.where, self.file, self.line)


class ResurgeError(Exception):
    """Something the user can mend. The message says what, what was got, what is allowed."""


class DataError(ResurgeError):
    """A user's data are wrong: the message says which file and row, and what to do."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a sweep file.

    `where` is the YAML path ("edits[0].unlearn.esd.group"); `file` and `line` (from 1) point at
    it, and are None for values from the command line.
    """

    what: str
    where: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        file = visible(self.file, keep="") if self.file else ""
        place = f"{file}:{self.line}" if file and self.line else file
        parts = (place, one_line(self.where, LONGEST_PLACE), one_line(self.what, LONGEST_MESSAGE))
        return ": ".join(part for part in parts if part)


class Stopped(KeyboardInterrupt):
    """A signal asks this process to stop. A plain KeyboardInterrupt may be a plug-in's own."""


class SweepError(ResurgeError):
    """A sweep file with everything that is wrong in it."""

    def __init__(self, problems: list[Problem], note: str = "") -> None:
        self.problems, self.note = problems, note
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        lines = [f"{count} in the sweep", *(f"  {p}" for p in problems)]
        super().__init__("\n".join([*lines, f"  ({note})"] if note else lines))


class StoreError(ResurgeError):
    """The store holds something that does not fit what is asked of it."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or not be written, for as long as patience lasted."""


class DamagedDocument(StoreError):
    """A document of the store is not what was written; the message says which and what to do."""


class UnreadableFile(ResurgeError):
    """A file that a stage left is not in its format. The store sets the stage's record aside."""


class CorruptObject(StoreError):
    """A stage's record or one of its objects was damaged, and has been set aside.

    The stage has no record any more: to run it again mends the store. `key` is its 16-digit key,
    `digest` all 64 digits.
    """

    def __init__(self, message: str, digest: str) -> None:
        self.digest = digest
        self.key = digest[:16]
        super().__init__(message)

    def __reduce__(self) -> tuple[type[CorruptObject], tuple[str, str]]:
        return type(self), (str(self), self.digest)  # it travels between processes
