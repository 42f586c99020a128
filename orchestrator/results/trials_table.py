"""Records -> Parquet, one row a trial. The columns are documented in docs/results.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.plan.plan import Plan
from orchestrator.results.chains import way_columns
from orchestrator.results.groups import group_columns
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Column:
    """A column that every results file has."""

    name: str
    type: pa.DataType
    description: str
    of: Callable[[Measured], Any]


_TEXT, _NUMBER, _FLAG, _COUNT = pa.string(), pa.float64(), pa.bool_(), pa.int64()


def _with_interval(name: str, description: str) -> Iterator[Column]:
    """An estimate of `Paired`, and the ends of its interval."""

    def of(end: str) -> Callable[[Measured], float | None]:
        return lambda m: getattr(getattr(m.paired, name, None), end, None)

    yield Column(name, _NUMBER, description, of("value"))
    yield Column(f"{name}_low", _NUMBER, f"lower end of {name}'s 95% interval", of("low"))
    yield Column(f"{name}_high", _NUMBER, f"upper end of {name}'s 95% interval", of("high"))


NAMES = (
    Column("trial", _TEXT, "the trial's key, 16 hex digits", lambda m: m.planned.key),
    Column(
        "is_control",
        _FLAG,
        "the same fine-tuning of the base, without unlearning",
        lambda m: m.planned.is_control,
    ),
    Column("status", _TEXT, "done, incomplete or failed", lambda m: m.status),
)

NUMBERS = (
    Column(
        "base_score",
        _NUMBER,
        "primary metric of the erased concept on the base",
        lambda m: m.base.erased,
    ),
    Column("unlearned_score", _NUMBER, "… after unlearning", lambda m: m.unlearned.erased),
    Column("final_score", _NUMBER, "… after every edit", lambda m: m.final.erased),
    Column(
        "control_score",
        _NUMBER,
        "final_score of the trial's control: the same fine-tuning of the base",
        lambda m: m.control,
    ),
    *_with_interval("resurgence", "final_score - unlearned_score, paired by image"),
    *_with_interval(
        "recovery", "resurgence / (base_score - unlearned_score); null if that is next to nothing"
    ),
    Column(
        "unlearning_failed",
        _FLAG,
        "unlearning took away less than half of base_score: no resurgence to speak of",
        lambda m: m.unlearning_failed,
    ),
    Column(
        "model_ruined",
        _FLAG,
        "unlearning took away more than half of retained_base: the concept went with the model",
        lambda m: m.model_ruined,
    ),
    Column(
        "pictures",
        _COUNT,
        "pictures of the base, the unlearned and the final model",
        lambda m: m.pictures.count,
    ),
    Column("constant_pictures", _COUNT, "… of one colour", lambda m: m.pictures.constant),
    Column(
        "pictures_without_value",
        _COUNT,
        "… of the erased concept that the primary metric has no value of",
        lambda m: m.pictures.without_value,
    ),
    Column(
        "retained_concepts",
        _COUNT,
        "concepts that should survive (of the role retained, else other, else related), over which "
        "retained_… are means",
        lambda m: None if m.final.retained is None else m.pictures.retained_scored,
    ),
    Column(
        "retained_base",
        _NUMBER,
        "primary metric over the retained concepts, on the base",
        lambda m: m.base.retained,
    ),
    Column("retained_unlearned", _NUMBER, "… after unlearning", lambda m: m.unlearned.retained),
    Column("retained_final", _NUMBER, "… after every edit", lambda m: m.final.retained),
    Column(
        "never_known_base",
        _NUMBER,
        "primary metric of a concept that the base never knew, on the base",
        lambda m: m.base.never_known,
    ),
    Column(
        "never_known_unlearned", _NUMBER, "… after unlearning", lambda m: m.unlearned.never_known
    ),
    Column("never_known_final", _NUMBER, "… after every edit", lambda m: m.final.never_known),
)

ORIGINS = (
    Column(
        "seconds",
        _NUMBER,
        "seconds of all stages that the row rests on; shared ones count in every row",
        lambda m: m.seconds,
    ),
    Column(
        "base_model",
        _TEXT,
        "digest of the base, 64 hex digits",
        lambda m: m.planned.base.model.digest,
    ),
    Column(
        "unlearned_model",
        _TEXT,
        "digest of the model after unlearning",
        lambda m: m.planned.unlearned.model.digest,
    ),
    Column(
        "final_model",
        _TEXT,
        "digest of the model after every edit",
        lambda m: m.planned.final.model.digest,
    ),
    Column(
        "sample",
        _TEXT,
        "digest of the final model's images",
        lambda m: m.planned.final.sample.digest,
    ),
    Column(
        "score",
        _TEXT,
        "digest of the final model's primary score",
        lambda m: stage.digest if (stage := m.planned.final.primary) else None,
    ),
)


def table(plan: Plan, store: Store, reader: TrialReader | None = None) -> pa.Table:
    """The sweep's results, one row a trial, controls included; what has no record yet is null.

    A column is called what the sweep file calls its axis ("finetune.steps"); a final model's other
    numbers are "<metric>.<name>".
    """
    reader = reader or TrialReader(plan, store)
    trials = reader.all()
    fields: list[tuple[pa.Field, list[Any]]] = [
        (_field("sweep", _TEXT, "the sweep's name"), [plan.name] * len(trials))
    ]
    fields += [_fixed(column, trials) for column in NAMES]
    fields += _open(trials, lambda m: m.planned.trial.params, "axis of the sweep")
    fields += [_fixed(column, trials) for column in NUMBERS]
    fields += _open(trials, lambda m: group_columns(m.groups), "a group beside the erased concept")
    fields += _open(trials, lambda m: way_columns(reader, m.planned), "a model on the way")
    fields += _open(trials, lambda m: m.metrics, "number of the final model")
    fields += [_fixed(column, trials) for column in ORIGINS]
    schema = pa.schema([field for field, _ in fields], metadata={"resurge.sweep": plan.name})
    return pa.table([pa.array(values, field.type) for field, values in fields], schema=schema)


def write(results: pa.Table, path: Path) -> None:
    """Write Parquet in one move: whoever reads the path sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(results, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _fixed(column: Column, trials: Iterable[Measured]) -> tuple[pa.Field, list[Any]]:
    field = _field(column.name, column.type, column.description)
    return field, [column.of(measured) for measured in trials]


def _open(
    trials: Sequence[Measured], values: Callable[[Measured], Mapping[str, Any]], description: str
) -> list[tuple[pa.Field, list[Any]]]:
    """One column for each name that any trial has a value of; null where a trial has none."""
    found = [values(measured) for measured in trials]
    names = dict.fromkeys(name for row in found for name in row)
    columns = []
    for name in names:
        column = of_one_type([row.get(name) for row in found])
        kind = pa.infer_type(column)
        columns.append((_field(name, _TEXT if kind == pa.null() else kind, description), column))
    return columns


def of_one_type(values: Sequence[Any]) -> list[Any]:
    """A column's values: whole numbers beside others become floats, any other mixture text."""
    types = {type(value) for value in values if value is not None}
    if len(types) < 2:
        return list(values)
    kind = float if types == {int, float} else str
    return [None if value is None else kind(value) for value in values]


def _field(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})
