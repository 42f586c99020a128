"""Data sets of yours: rows of pictures and captions, read or refused all together."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.data.pinned import digest_of
from workers.interfaces.dataset import Dataset, Examples, check_size, draw_subset
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from PIL import Image

Row = tuple[str, bytes | Path | None, Any]
"""(what to call the row in an error, the picture, the caption)."""
MIN_SIDE_PX = 4
"""A picture with a shorter side than this is a placeholder, not a picture."""
MAX_PROBLEMS_SHOWN = 50
ROWS_PER_SIGN = 64


class RowsSettings(Settings):
    """Which rows of a file."""

    caption_column: str = Field("text", description="the column with the captions")
    size: int | None = Field(
        None, ge=1, description="how many rows, chosen by the seed; null: all, in their order"
    )
    seed: int = Field(0, ge=0, description="seed of the choice")
    path: str = Field(description="where the pictures are")


class RowsDataset(Dataset):
    """Captioned pictures from files. Planning reads every chosen row but decodes no picture.

    Pictures are turned upright, scaled to cover a square and cropped in the middle. Whether they
    show the erased concept is for you to know.
    """

    uses_concept = False
    settings: RowsSettings

    @property
    def path(self) -> Path:
        """Where the files are."""
        return Path(self.settings.path).expanduser()

    @abstractmethod
    def check(self) -> None:
        """Raise a ResurgeError if the files are not there, or not of the right form."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row, good or bad."""

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What can be seen without decoding: files, columns, captions, sizes of pictures."""
        return list(self._problems)

    @cached_property
    def _problems(self) -> tuple[str, ...]:
        try:
            self.check()
            bad = bad_rows(self._chosen(), self.settings.caption_column)
        except ResurgeError as error:
            return (str(error),)
        return (_sentence(self.path, bad),) if bad else ()

    def count(self) -> int:
        """The rows that are taken."""
        return check_size(sum(1 for _ in self.rows()), self.settings.size, str(self.path))

    def fingerprint(self) -> str:
        """sha256 of names and contents: all of a folder's files, or the file."""
        self.check()
        return digest_of(self.path)

    def examples(self, concept: str, size_px: int) -> Examples:
        """Read the chosen rows; all bad rows are named at once."""
        self.check()
        return collect(self._chosen(), self.path, self.settings.caption_column, size_px)

    def _chosen(self) -> list[Row]:
        rows, s = list(self.rows()), self.settings
        return [rows[i] for i in draw_subset(len(rows), s.size, s.seed, str(self.path))]


def bad_rows(rows: Iterable[Row], column: str) -> list[str]:
    """What is wrong with each bad row, as far as its picture's header tells."""
    bad = []
    for name, source, text in rows:
        try:
            _open_image(source).close()
            _read_caption(text, column)
        except (OSError, ValueError) as error:
            bad.append(f"{name}: {error}")
    return bad


def collect(rows: Iterable[Row], where: object, column: str, size_px: int) -> Examples:
    """Pictures and captions of rows; `column` is where errors say that the caption is missing.

    Raises:
        ResurgeError: with every bad row; or there are no rows.
    """
    import numpy as np
    from PIL import Image, ImageOps

    images, captions, names, bad = [], [], [], []
    for name, source, text in rows:
        try:
            with _open_image(source) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (size_px, size_px), Image.Resampling.LANCZOS)
            images.append(np.asarray(square))
            captions.append(_read_caption(text, column))
            names.append(name)
        except (OSError, ValueError) as error:
            bad.append(f"{name}: {error}")
        if (read := len(images) + len(bad)) % ROWS_PER_SIGN == 0:
            tell(read, read)  # rows may come from a stream, whose end is not known
    if bad:
        raise ResurgeError(_sentence(where, bad))
    check_size(len(images), None, str(where))
    return Examples(np.stack(images), tuple(captions), tuple(names))


def _sentence(where: object, bad: Sequence[str]) -> str:
    lines = list(bad[:MAX_PROBLEMS_SHOWN])
    if len(bad) > len(lines):
        lines.append(f"… and {len(bad) - len(lines)} more")
    count = f"{len(bad)} bad row{'s' if len(bad) > 1 else ''}"
    return f"{where}: {count}\n  " + "\n  ".join(lines)


def _read_caption(text: Any, column: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no caption in column {column!r}")
    return text


def _open_image(source: bytes | Path | None) -> Image.Image:
    """The picture, its header read and its pixels not yet; large enough to be one."""
    from PIL import Image

    if source is None:
        raise ValueError("no picture")
    if isinstance(source, Path) and not source.is_file():
        raise ValueError("the file is missing")
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if min(image.size) < MIN_SIDE_PX:
        image.close()
        raise ValueError(
            f"the picture has {image.width} × {image.height} pixels; "
            f"at least {MIN_SIDE_PX} × {MIN_SIDE_PX} are needed"
        )
    return image
