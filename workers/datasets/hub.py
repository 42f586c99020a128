"""Captioned pictures from a Hugging Face data set repository, pinned to a commit."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.data.pinned import Source, offline_hint, sentence
from workers.data.rows import Row, collect
from workers.interfaces.dataset import Dataset, Examples, draw_subset

Table = Any
"""A `datasets.Dataset`, or an `IterableDataset` of a stream."""
STREAM_SURPLUS = 1000
"""Rows that are read of a stream beyond those asked for, to choose among."""
INSTALL = "pip install 'resurge[hub]'"


class HubSettings(Settings):
    """Which rows of which repository, and how they become pictures and captions."""

    repository: str = Field(
        description="a data set's repository, owner/name; or a folder with a clone of one"
    )
    revision: str | None = Field(
        None, description="the repository's commit, 40 hex digits; needed, but not for a folder"
    )
    config: str | None = Field(
        None, description="the data set's configuration (subset); null: its default"
    )
    split: str = Field("train", description="the data set's split")
    image_column: str = Field("image", description="the column with the pictures")
    caption: str = Field(
        "{text}",
        description="the caption, with columns in braces: '{text}', 'a photo of a {label}'; class "
        "labels become their names; without braces, all pictures have this caption",
    )
    size: int | None = Field(
        None, ge=1, description="how many rows, chosen by the seed; null: all, in their order"
    )
    seed: int = Field(0, ge=0, description="seed of the choice")
    streaming: bool = Field(
        False,
        description="read the beginning of the split instead of downloading all of it; the seed "
        f"then chooses among the first size + {STREAM_SURPLUS} rows",
    )

    @field_validator("caption")
    @classmethod
    def _braces_hold_columns(cls, caption: str) -> str:
        try:
            columns = columns_of(caption)
        except ValueError as error:
            raise ValueError(f"caption {caption!r} cannot be read: {error}") from None
        if not caption.strip() or any(not name or name.isdigit() for name in columns):
            raise ValueError(
                "caption must be text, with the names of columns in its braces, such as "
                f"'a photo of a {{label}}', but got {caption!r}"
            )
        return caption

    @model_validator(mode="after")
    def _is_pinned(self) -> HubSettings:
        source = Source(self.repository, self.revision)
        match source.fault():
            case "revision of what is here":
                raise ValueError(
                    f"revision is for repositories but {self.repository!r} is a folder"
                )
            case "no repository":
                raise ValueError(
                    "repository must be owner/name or a folder that exists but got "
                    f"{self.repository!r}"
                )
            case "no commit":
                raise ValueError(
                    f"repository {self.repository!r} needs revision, a commit hash of 40 hex "
                    f"digits, but {source.got}; a branch or a tag moves, and a result must name "
                    "the pictures that it was computed from"
                )
        return self


class Hub(Dataset):
    """Captioned pictures from a Hugging Face data set, pinned to a commit.

    Needs `pip install 'resurge[hub]'`. The data set must be of a format that `datasets` reads by
    itself (Parquet, imagefolder, webdataset): code from a repository is never run. Planning does
    not touch the network; HF_HUB_OFFLINE=1 reads the local cache only. Pictures are cropped as
    `folder` crops them. Whether they show the erased concept is for you to know.
    """

    name = "hub"
    version = 1
    uses_concept = False
    Settings = HubSettings
    settings: HubSettings

    def fingerprint(self) -> str:
        """repository@revision/config/split; of a folder, sha256 of its files."""
        s, source = self.settings, self._source
        part = "" if source.path.is_dir() else f"/{s.config or 'default'}/{s.split}"
        return source.digest() + part

    @property
    def _source(self) -> Source:
        return Source(self.settings.repository, self.settings.revision)

    def examples(self, concept: str, size_px: int) -> Examples:
        """Read the chosen rows; all bad rows are named at once."""
        columns = "', '".join(columns_of(self.settings.caption))
        return collect(self._rows(), self._where, columns, size_px)

    @property
    def _where(self) -> str:
        s = self.settings
        return f"{s.repository}{f'@{s.revision}' if s.revision else ''}, split {s.split!r}"

    def _rows(self) -> Iterator[Row]:
        s, table = self.settings, self._table()
        columns = columns_of(s.caption)
        names = {column: getattr(table.features[column], "names", None) for column in columns}
        if s.streaming:  # not the library's own shuffle: its order changes with its version
            with self._reading():
                table = list(islice(table, s.size and s.size + STREAM_SURPLUS))
        for index in draw_subset(len(table), s.size, s.seed, self._where):
            row = table[index]
            texts = {column: _text(row[column], names[column]) for column in columns}
            said = None if None in texts.values() else s.caption.format(**texts)
            picture = row[s.image_column] or {}  # not decoded: its bytes, or the file with them
            file = picture.get("path")
            yield f"row {index + 1}", picture.get("bytes") or (Path(file) if file else None), said

    def _table(self) -> Table:
        """The split, with the columns that are needed, its pictures as bytes."""
        try:
            import datasets
        except ImportError as error:
            raise ResurgeError(
                f"dataset 'hub' needs the package datasets, which is not installed: {INSTALL}"
            ) from error
        s = self.settings
        datasets.disable_progress_bars()  # a worker's log is read later
        with self._reading():
            table = datasets.load_dataset(
                self._source.where,
                s.config,
                split=s.split,
                revision=s.revision,
                streaming=s.streaming,
            )
        there = table.column_names
        columns = [s.image_column, *columns_of(s.caption)]
        if missing := [column for column in columns if column not in there]:
            raise ResurgeError(
                f"{self._where} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(there)}; set image_column and caption"
            )
        if not isinstance(table.features[s.image_column], datasets.Image):
            raise ResurgeError(
                f"column {s.image_column!r} of {self._where} must hold pictures but holds "
                f"{table.features[s.image_column]}; set image_column"
            )
        # Decoded here, as `folder` does it, so that one bad picture does not end the reading.
        encoded = datasets.Image(decode=False)
        return table.select_columns(columns).cast_column(s.image_column, encoded)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the readers raise whatever they trip over
            found = f"{sentence(error)}{offline_hint('the cache')}"
            raise ResurgeError(f"cannot read the data set {self._where}: {found}") from error


def columns_of(caption: str) -> tuple[str, ...]:
    """The names in a caption's braces, each once.

    Raises:
        ValueError: a brace without its partner.
    """
    names = (name for _, name, _, _ in string.Formatter().parse(caption) if name is not None)
    return tuple(dict.fromkeys(names))


def _text(value: Any, names: Sequence[str] | None) -> str | None:
    """A row's text, or the name of its class label; None if it has neither."""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value].replace("_", " ")
    return value if isinstance(value, str) and names is None else None
