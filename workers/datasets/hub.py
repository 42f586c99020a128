"""Captioned pictures from a Hugging Face data set repository, pinned to a commit."""

from __future__ import annotations

import importlib.util
import os
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field, field_validator, model_validator

from orchestrator.core.errors import DataError, ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText
from workers.data.hub_access import asking_the_hub
from workers.data.images import BACKGROUND, Background
from workers.data.metadata import SAVED
from workers.data.pinned import Source, sentence
from workers.data.rows import Row, collect
from workers.interfaces.dataset import Dataset, Examples, draw_subset

Table = Any
"""A `datasets.Dataset`, or an `IterableDataset` of a stream."""
STREAM_SURPLUS = 1000
"""Rows that are read of a stream beyond those asked for, to choose among."""
INSTALL = "pip install 'resurge[hub]'"


class HubSettings(Settings):
    """Which rows of which repository, and how they become pictures and captions."""

    repository: PlaceText = Field(
        description="a data set's repository, owner/name; or a folder with a clone of one, or one "
        "that `Dataset.save_to_disk` wrote"
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
    background: Background = Field("white", description=BACKGROUND)

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
    version = 2
    uses_concept = False
    Settings = HubSettings
    settings: HubSettings

    def fingerprint(self) -> str:
        """repository@revision/config/split; of a folder, sha256 of its files."""
        s, source = self.settings, self._source
        part = "" if source.path.is_dir() else f"/{s.config or 'default'}/{s.split}"
        return source.digest() + part

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """A clone's folders must be its own: what reads them passes links by without a word."""
        path = self._source.path
        linked = [p for p in sorted(path.rglob("*")) if p.is_symlink() and p.is_dir()]
        return [
            f"{p} is a link to a folder, which the package datasets does not read; "
            "put the folder itself there"
            for p in linked[:1]
        ]

    @property
    def _source(self) -> Source:
        return Source(self.settings.repository, self.settings.revision)

    def examples(self, concept: str, size_px: int) -> Examples:
        """Read the chosen rows; all bad rows are named at once."""
        columns = "', '".join(columns_of(self.settings.caption))
        with self._scratch() as scratch:
            rows = enumerate(self._rows(scratch))
            return collect(rows, self._where, columns, size_px, self.settings.background)

    @contextmanager
    def _scratch(self) -> Iterator[str]:
        """Where the package may prepare a folder, for as long as it is read; '' for its own cache.

        It would know a folder again by times of modification, which can be set back.
        """
        if not self._source.path.is_dir() or importlib.util.find_spec("datasets") is None:
            yield ""
            return
        from datasets import config

        with self._reading():
            os.makedirs(config.HF_DATASETS_CACHE, exist_ok=True)
            folder = TemporaryDirectory(prefix="resurge-", dir=config.HF_DATASETS_CACHE)
        with folder as scratch:
            yield scratch

    @property
    def _where(self) -> str:
        s = self.settings
        return f"{s.repository}{f'@{s.revision}' if s.revision else ''}, split {s.split!r}"

    def _rows(self, scratch: str) -> Iterator[Row]:
        s, table = self.settings, self._table(scratch)
        columns = columns_of(s.caption)
        names = {column: getattr(table.features[column], "names", None) for column in columns}
        if s.streaming:  # not the library's own shuffle: its order changes with its version
            with self._reading():
                table = list(islice(table, s.size and s.size + STREAM_SURPLUS))
        for index in draw_subset(len(table), s.size, s.seed, self._where):
            with self._reading():
                row = table[index]
            texts = {column: _text(row[column], names[column]) for column in columns}
            others = [text for text in texts.values() if not isinstance(text, str)]
            said = others[0] if others else s.caption.format(**texts)
            picture = row[s.image_column] or {}  # not decoded: its bytes, or the file with them
            name, content, file = f"row {index + 1}", picture.get("bytes"), picture.get("path")
            if content is None and file and not self._is_pinned(file, scratch):
                yield Row(name, fault=f"its picture {file} is no file of the data set's own")
            else:
                yield Row(name, content if content or not file else Path(file), said)

    def _table(self, scratch: str) -> Table:
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
            table = self._saved(datasets) if self._is_saved else self._loaded(datasets, scratch)
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

    def _loaded(self, datasets: Any, scratch: str) -> Table:
        """A clone, or a repository from the hub or its cache."""
        s, source = self.settings, self._source
        how = {"path": source.where, "name": s.config, "revision": s.revision}
        if source.path.is_dir():
            how["cache_dir"] = scratch
            splits = datasets.load_dataset_builder(**how).config.data_files or {}
            self._refuse_others(file for files in splits.values() for file in files)
        return datasets.load_dataset(**how, split=s.split, streaming=s.streaming)

    @property
    def _is_saved(self) -> bool:
        """Whether `save_to_disk` wrote it."""
        return any((self._source.path / name).is_file() for name in SAVED)

    def _saved(self, datasets: Any) -> Table:
        """A folder that `save_to_disk` wrote, of one split or of several."""
        s = self.settings
        found = datasets.load_from_disk(self._source.where)
        splits = found if isinstance(found, dict) else {str(found.split or s.split): found}
        if s.split not in splits:
            raise ResurgeError(f"{self._where} is not there, but {', '.join(splits)}; set split")
        if s.config is not None:
            raise ResurgeError(f"{self._where} was saved to disk without a name; leave out config")
        self._refuse_others(file["filename"] for file in splits[s.split].cache_files)
        return splits[s.split]

    def _refuse_others(self, files: Iterable[str]) -> None:
        """See that a folder's tables are in it: what is elsewhere is not in its digest."""
        if others := [file for file in files if not self._is_pinned(file)]:
            raise DataError(
                f"{self._where} is made of {others[0]}, which is not in that folder; copy it there"
            )

    def _is_pinned(self, file: str, scratch: str = "") -> bool:
        """Whether a file is in the folder whose digest is known, or came from the hub."""
        from datasets import config
        from huggingface_hub import constants

        caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
        own = (self._source.path,) if self._source.path.is_dir() else caches
        roots = [Path(os.path.abspath(root)) for root in (*own, *filter(None, [scratch]))]
        path = Path(file)
        return ".." not in path.parts and any(
            Path(os.path.abspath(path)).is_relative_to(root) for root in roots
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with asking_the_hub(self._source, "dataset"):
                yield
        except (ResurgeError, MemoryError):
            raise
        except Exception as error:  # the readers raise whatever they trip over
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise DataError(f"cannot read the data set {self._where}: {sentence(cause)}") from error


def columns_of(caption: str) -> tuple[str, ...]:
    """The names in a caption's braces, each once.

    Raises:
        ValueError: a brace without its partner.
    """
    names = (name for _, name, _, _ in string.Formatter().parse(caption) if name is not None)
    return tuple(dict.fromkeys(names))


def _text(value: Any, names: Sequence[str] | None) -> Any:
    """A row's text, or the name of its class label; what is neither as it is, to be refused."""
    if names is None:
        return value
    is_label = isinstance(value, int) and 0 <= value < len(names)
    return names[value].replace("_", " ") if is_label else None
