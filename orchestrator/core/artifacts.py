"""What one side writes and the other reads: the files by name, and what stands in them.

| file | written by | read by | what it is |
|---|---|---|---|
| `images.parquet` | a worker's sample | scores; results, tracking, audit | a row a picture |
| `values.parquet` | a worker's score | results, audit | a row a picture |
| `losses.parquet` | a worker's finetune | results, tracking | a row an optimiser step |
| `dataset.parquet` | a worker's prepare | finetunes; tracking, whoever looks | a row an example |
| `material.safetensors` | a worker's prepare | unlearnings | a material's tensors |
| `weights.safetensors` | a worker that makes a model | what hangs on it; upkeep, audit | edits |
| `failures/<key>.json` | the scheduler | status, results | a `Failure` |

All but the last are objects of records; `Provenance` and some numbers of a record are shared too.
How the store lays all of this out is the store's own affair (`orchestrator/store`). A row's class
is its file's schema: another column, or another type, is another format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypedDict,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from orchestrator.core.errors import UnreadableFile

if TYPE_CHECKING:
    import pyarrow as pa

Role = Literal["erased", "synonym", "retained", "related", "other", "never_known"]
"""Why a picture was asked for; a score's means are numbers of these names.

`erased`: the erased concept by name; `synonym`: the same in other words; `related` and `other`:
concepts that are near to it and that are not, which should survive; `retained`: what the set
`templates` calls them, near or not; `never_known`: a concept that the base was never shown.
"""
ASKS_ERASED: tuple[Role, ...] = ("erased", "synonym")
"""The roles of pictures that should show an erased concept."""
KEPT: tuple[Role, ...] = ("retained", "other", "related")
"""The roles of what should survive; the first of them that was asked for is a model's health."""


@dataclass(frozen=True)
class Probe:
    """A prompt that a model is asked, and why: `concept` is what the picture should show.

    `noise_seed` is the row's own, in place of the sample's. A prompt that `may_be_cut` is drawn
    though the model does not read it to its end.
    """

    role: Role
    concept: str
    prompt: str
    noise_seed: int | None = None
    may_be_cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a sample stage has it: what is as usual is left out."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, False)}


class ImageRow(NamedTuple):
    """`prompt_index` counts the prompts of a sample stage, `image_index` the images of one."""

    role: Role
    concept: str
    prompt: str
    prompt_index: int
    image_index: int
    png: bytes


class ValueRow(NamedTuple):
    """A metric's value of the picture that `ImageRow` has under the same names."""

    role: Role
    concept: str
    prompt: str
    prompt_index: int
    image_index: int
    value: float


class LossRow(NamedTuple):
    """An optimiser step, from 1 on."""

    step: int
    loss: float


class ExampleRow(NamedTuple):
    """The file is for other programs too, so it carries what its columns are."""

    image: Annotated[bytes, "the picture as it is trained on, PNG"]
    caption: Annotated[str, "its caption"]
    source: Annotated[str, "where it is from: data set, then row, file or number"]
    sha256: Annotated[str, "sha256 of the image column's bytes"]
    distance: Annotated[
        float | None, "distance from the erased concept; null if it was not measured"
    ]


class Column(NamedTuple):
    """A column of a Parquet file; `type` is Arrow's name."""

    name: str
    type: str
    is_required: bool
    description: str | None


R = TypeVar("R", bound=tuple[Any, ...])
_ARROW = {bytes: "binary", str: "string", int: "int64", float: "double"}


@dataclass(frozen=True)
class RowFile(Generic[R]):
    """A Parquet file whose rows are the NamedTuple `row`.

    pyarrow is imported when a file is read or written: planning does neither.
    """

    name: str
    row: Callable[..., R]
    compression: str = "snappy"
    rows_per_group: int | None = None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """In the file's order."""
        found = []
        for name, hint in get_type_hints(self.row, include_extras=True).items():
            description = None
            if get_origin(hint) is Annotated:
                hint, description = get_args(hint)
            if get_origin(hint) is Literal:
                hint = str
            kind, *more = get_args(hint) or (hint,)  # of `float | None`, the first
            found.append(Column(name, _ARROW[kind], not more, description))
        return tuple(found)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow's; descriptions are part of the file."""
        import pyarrow as pa

        return pa.schema(
            pa.field(
                column.name,
                pa.type_for_alias(column.type),
                metadata={"description": column.description} if column.description else None,
            )
            for column in self.columns
        )

    def write(self, path: Path, rows: Iterable[R]) -> None:
        """Write the rows, in their order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = list(zip(*rows, strict=True)) or [()] * len(self.columns)
        table = pa.table([list(column) for column in values], schema=self.schema)
        pq.write_table(
            table, path, compression=self.compression, row_group_size=self.rows_per_group
        )

    def read(self, path: Path) -> list[R]:
        """The inverse of `write`.

        Raises:
            UnreadableFile: it is no Parquet file, or lacks a column, or a value.
        """
        table = self.table(path)
        try:
            return list(map(self.row, *(column.to_pylist() for column in table.columns)))
        except UnicodeDecodeError as error:
            raise UnreadableFile(f"{path} is no {self.name}: {error}") from error

    def table(self, path: Path, memory_map: bool = False) -> pa.Table:
        """The file's columns, in their order, as Arrow has them; mapped, no bytes are copied.

        Raises:
            UnreadableFile: it is no Parquet file, or lacks a column, or a value.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = [column.name for column in self.columns]
        try:
            table = pq.ParquetFile(path, memory_map=memory_map).read(columns=names)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's error, not the file's
            raise UnreadableFile(f"{path} is no Parquet file: {error}") from error
        for column in self.columns:
            found = table.schema.get_field_index(column.name)
            if found < 0:
                raise UnreadableFile(f"{path} has no column {column.name!r}")
            if (type_ := table.schema.field(found).type) != pa.type_for_alias(column.type):
                raise UnreadableFile(
                    f"the column {column.name!r} of {path} is of the type {type_} and not "
                    f"{column.type}"
                )
            if column.is_required and table[column.name].null_count:
                raise UnreadableFile(f"the column {column.name!r} of {path} lacks values")
        return table.select(names)


# Pictures are compressed already.
IMAGES = RowFile("images.parquet", ImageRow, compression="none")
VALUES = RowFile("values.parquet", ValueRow)
LOSSES = RowFile("losses.parquet", LossRow)
DATASET = RowFile("dataset.parquet", ExampleRow, compression="none", rows_per_group=256)
MATERIAL = "material.safetensors"
WEIGHTS = "weights.safetensors"

LOSS = "loss"
"""The number of a finetune's record that says how well it fitted at its end."""
IMAGES_DRAWN = "images"
"""The number of a sample's record that says how many pictures there are."""
CONSTANT_PICTURES = "constant_pictures"
"""How many of them are of one colour, black ones among them: what a safety checker leaves, or a
broken autoencoder."""
EXAMPLES = "examples"
"""The number of a prepared data set's record that says how many there are."""


class Machine(TypedDict, total=False):
    """Where a stage was computed; where two agree in all of it, so should their last bits."""

    host: str
    platform: str
    device: str
    threads: int
    python: str


class Provenance(Machine, total=False):
    """Where and with what a stage was computed, in its record.

    `versions` are those of packages (None: not installed), `base` is what the base plug-in says of
    its source, `split` the parts in which every batch was computed, if it was more than one; `gpus`
    how many the worker had to itself, which may be a share of one.
    """

    versions: Mapping[str, str | None]
    git_sha: str | None
    base: Mapping[str, Any]
    split: int
    gpus: float


Cause = Literal["bug", "input", "nan", "oom", "hang", "storage", "lost"]
"""Why a stage failed: its own error, what the user gave it (a data set, a model), a number that is
not finite, memory, silence, a store that could not be reached, workers that died."""


@dataclass(frozen=True)
class Failure:
    """Why a stage has no record; the log has the traceback, `curve` a training's (step, loss)."""

    message: str
    log_path: str | None
    cause: Cause = "bug"
    curve: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Failure:
        """The inverse of `to_json`; what else stands there is left aside."""
        known = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        curve = tuple((int(step), float(loss)) for step, loss in known.pop("curve", ()))
        return cls(**known, curve=curve)
