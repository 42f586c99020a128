"""Data sets of yours: rows of pictures and captions, read or refused all together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from orchestrator.core.errors import DataError, ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from orchestrator.core.text import shortened
from workers.data.files import PlaceText, digest_of, place
from workers.data.images import BACKGROUND, Background, open_image, read_square
from workers.interfaces.dataset import Dataset, Examples, check_size, draw_subset
from workers.runtime.progress import tell

MAX_PROBLEMS_SHOWN = 50
LONGEST_PROBLEM = 500
ROWS_PER_SIGN = 64
LONGEST_CAPTION = 100_000
"""Characters. No model reads a hundredth of it, and small files can unfold to gigabytes of it."""
MAX_ROWS = 10_000_000
"""More rows than this are not counted out, let alone prepared."""


@dataclass(frozen=True)
class Row:
    """A picture and its caption as they are found, and what to call the row in an error.

    `fault` is why neither could be found.
    """

    name: str
    picture: bytes | Path | None = None
    caption: Any = None
    fault: str = ""


class RowsSettings(Settings):
    """Which rows of a file."""

    caption_column: str = Field("text", description="the column with the captions")
    size: int | None = Field(
        None, ge=1, description="how many rows, chosen by the seed; null: all, in their order"
    )
    seed: int = Field(0, ge=0, description="seed of the choice")
    path: PlaceText = Field(description="where the pictures are")
    background: Background = Field("white", description=BACKGROUND)


class RowsDataset(Dataset):
    """Captioned pictures from files. Planning reads every chosen row but decodes no picture.

    Pictures are turned upright, put in front of the background where they are transparent, scaled
    to cover a square and cropped in the middle. Whether they show the erased concept is for you to
    know.
    """

    uses_concept = False
    settings: RowsSettings

    @property
    def path(self) -> Path:
        """Where the files are."""
        return place(self.settings.path)

    @abstractmethod
    def check(self) -> None:
        """Raise a ResurgeError if the files are not there, or not of the right form."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row, good or bad, one at a time: their pictures may be more than memory holds."""

    def there(self) -> int:
        """How many rows there are."""
        return sum(1 for _ in self.rows())

    def others(self) -> Iterable[str]:
        """Files that rows name, which may be outside of the folder."""
        return ()

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What can be seen without decoding: files, columns, captions, sizes of pictures."""
        return list(self._problems)

    @cached_property
    def _problems(self) -> tuple[str, ...]:
        bad = BadRows()
        try:
            self.check()
            for _, row in self._chosen():
                try:
                    open_image(_picture(row)).close()
                    read_caption(row.caption, self.settings.caption_column)
                except DataError as error:
                    bad.add(row.name, error)
        except ResurgeError as error:
            return (str(error),)
        return (bad.sentence(self.path),) if bad.count else ()

    def count(self) -> int:
        """The rows that are taken."""
        return check_size(self.there(), self.settings.size, str(self.path))

    def fingerprint(self) -> str:
        """sha256 of names and contents: all of a folder's files and those that its rows name
        elsewhere, or the file.
        """
        self.check()
        return digest_of(self.path, also=self.others())

    def examples(self, concept: str, size_px: int) -> Examples:
        """Read the chosen rows; all bad rows are named at once."""
        self.check()
        s = self.settings
        return collect(self._chosen(), self.path, s.caption_column, size_px, s.background)

    def _chosen(self) -> Iterator[tuple[int, Row]]:
        """The rows that are taken, in the file's order, each with its place among the taken."""
        s, there = self.settings, self.there()
        if there > MAX_ROWS:
            raise DataError(f"{self.path} has {there:,} rows; at most {MAX_ROWS:,} are read")
        order = draw_subset(there, s.size, s.seed, str(self.path))
        places = {row: place for place, row in enumerate(order)}
        for number, row in enumerate(self.rows()):
            if number in places:
                yield places[number], row


def collect(
    rows: Iterable[tuple[int, Row]], where: object, column: str, size_px: int, background: str
) -> Examples:
    """Pictures and captions of rows, put in the order of the numbers that come with them; `column`
    is where errors say that the caption is missing.

    Raises:
        DataError: with every bad row; or there are no rows.
    """
    import numpy as np

    found, bad = [], BadRows()
    for read, (number, row) in enumerate(rows, start=1):
        try:
            image = read_square(_picture(row), size_px, background)
            found.append((number, image, read_caption(row.caption, column), row.name))
        except DataError as error:
            bad.add(row.name, error)
        if read % ROWS_PER_SIGN == 0:
            tell(read, read)  # rows may come from a stream, whose end is not known
    if bad.count:
        raise DataError(bad.sentence(where))
    check_size(len(found), None, str(where))
    _, images, captions, names = zip(*sorted(found, key=lambda one: one[0]), strict=True)
    return Examples(np.stack(images), captions, names)


class BadRows:
    """What is wrong with rows: the first of them, and how many there are."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, name: str, error: DataError) -> None:
        """Remember one."""
        self.count += 1
        if self.count <= MAX_PROBLEMS_SHOWN:
            self.shown.append(shortened(f"{name}: {error}", LONGEST_PROBLEM))

    def sentence(self, where: object) -> str:
        """All of them, as one error."""
        lines: Sequence[str] = self.shown
        if self.count > len(lines):
            lines = [*lines, f"… and {self.count - len(lines)} more"]
        count = f"{self.count} bad row{'s' if self.count > 1 else ''}"
        return f"{where}: {count}\n  " + "\n  ".join(lines)


def _picture(row: Row) -> bytes | Path | None:
    if row.fault:
        raise DataError(row.fault)
    return row.picture


def read_caption(value: Any, column: str) -> str:
    """The caption, if it is one.

    Raises:
        DataError: it is missing, no text, enormous, or text that cannot be stored.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"no caption in column {column!r}")
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else type(value).__name__
        got = shortened(repr(value), 80)
        raise DataError(f"the caption in column {column!r} must be one text but is {kind}: {got}")
    if len(value) > LONGEST_CAPTION:
        raise DataError(
            f"the caption in column {column!r} has {len(value):,} characters; at most "
            f"{LONGEST_CAPTION:,} are read"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"the caption in column {column!r} is no valid Unicode") from None
    return value
