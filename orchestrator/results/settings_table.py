"""Settings, times to resurgence and points of chains for other programs: Parquet, CSV, JSON.

The columns are documented in docs/results.md.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pyarrow import csv

from orchestrator.core.concepts import joined
from orchestrator.plan.plan import Plan
from orchestrator.results.chains import Chain, chains
from orchestrator.results.groups import group_columns, interval_columns
from orchestrator.results.settings import Summary, aggregate, aggregate_by
from orchestrator.results.times import Times, times_to_resurgence
from orchestrator.results.trials_table import of_one_type
from orchestrator.store.store import Store

Form = Literal["csv", "json"]
TableRow = dict[str, Any]


def text(
    plan: Plan,
    store: Store,
    form: Form,
    by: Sequence[str],
    times: bool,
    threshold: float | None,
    points: bool = False,
) -> str:
    """The settings, or their times to resurgence or points, as CSV or JSON with a newline at the
    end.
    """
    if points:
        rows = list(points_rows(chains(plan, store)))
    elif times:
        rows = list(times_rows(times_to_resurgence(plan, store, threshold)))
    else:
        summary = aggregate_by(plan, store, by) if by else aggregate(plan, store)
        rows = settings_rows(summary)
    if form == "json":
        plain = [{name: _in_json(value) for name, value in row.items()} for row in rows]
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"
    buffer = io.BytesIO()
    csv.write_csv(_table(rows), buffer)
    return buffer.getvalue().decode()


def _in_json(value: Any) -> Any:
    """JSON has no word for what is no finite number: "nan", "inf" and "-inf" stand as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def settings_table(summary: Summary) -> pa.Table:
    """One row a setting, controls and those of 0 steps included."""
    return _table(settings_rows(summary))


def settings_rows(summary: Summary) -> list[TableRow]:
    """One row a setting; every row has every column."""
    names = dict.fromkeys(name for setting in summary.settings for name in setting.params)
    groups = [group_columns(setting.groups) for setting in summary.settings]
    more = dict.fromkeys(name for columns in groups for name in columns)
    return [
        {name: setting.params.get(name) for name in names}
        | {
            "is_control": setting.is_control,
            "trials_planned": setting.planned,
            "trials_scored": setting.scored,
            "trials_failed": setting.failed,
            "seeds_planned": setting.seeds_planned,
            "seeds_scored": setting.seeds_scored,
            "controls_planned": setting.controls_planned,
            "controls_scored": setting.controls_scored,
            "replicates": len(setting.resurgence_by_seed),
            "unlearning_failed": setting.unlearning_failed,
            "model_ruined": setting.model_ruined,
            "pictures": setting.pictures.count,
            "constant_pictures": setting.pictures.constant,
            "pictures_without_value": setting.pictures.without_value,
            "retained_concepts": setting.pictures.retained_scored,
            "base_score": setting.base,
            "unlearned_score": setting.unlearned,
            "final_score": setting.final,
            "final_low": setting.final_low,
            "final_high": setting.final_high,
            "control_score": setting.control,
            **interval_columns("resurgence", setting.paired.resurgence if setting.paired else None),
            "p": setting.paired.p if setting.paired else None,
            "p_holm": setting.p_holm,
            **interval_columns("recovery", setting.paired.recovery if setting.paired else None),
            "retained_final": setting.retained,
            "never_known_final": setting.never_known,
            **{name: columns.get(name) for name in more},
        }
        for setting, columns in zip(summary.settings, groups, strict=True)
    ]


def times_rows(times: Times) -> Iterator[TableRow]:
    """One row a setting and step count at which its curve has a point."""
    names = dict.fromkeys(name for setting in times.settings for name in setting.params)
    for setting in times.settings:
        for point in setting.curve:
            yield {name: setting.params.get(name) for name in names} | {
                "steps": point.steps,
                "at_risk": point.at_risk,
                "events": point.events,
                "still_gone": point.share,
                "still_gone_low": point.low,
                "still_gone_high": point.high,
                "median_steps": setting.median,
                "seeds_scored": len(setting.times),
                "never_gone": setting.never_gone,
                "model_ruined": setting.ruined,
                "seeds_to_come": setting.to_come,
            }


def points_table(found: Sequence[Chain]) -> pa.Table:
    """One row a model on the way of a setting, and group of what it was asked."""
    return _table(points_rows(found))


def points_rows(found: Sequence[Chain]) -> Iterator[TableRow]:
    """One row a model on the way of a setting, and group of what it was asked."""
    names = dict.fromkeys(name for chain in found for name in chain.params)
    for chain in found:
        for point in chain.points:
            passage = point.passage
            for group, estimate in point.scores.items():
                yield {name: chain.params.get(name) for name in names} | {
                    "is_control": chain.is_control,
                    "position": passage.position,
                    "point": passage.label,
                    "alone": passage.aside,
                    "erased_so_far": joined(passage.erased),
                    "group": group.name,
                    **interval_columns("score", estimate),
                    "replicates": point.replicates,
                }


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    rows = list(rows)
    names = rows[0] if rows else {}
    return pa.table({name: pa.array(of_one_type([row[name] for row in rows])) for name in names})
