"""Settings and times to resurgence for other programs: Parquet, CSV, JSON.

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

from orchestrator.plan.plan import Plan
from orchestrator.results.settings import Aggregate, Summary, aggregate, aggregate_by
from orchestrator.results.times import Times, times_to_resurgence
from orchestrator.stats.paired import Estimate
from orchestrator.store.store import Store

Form = Literal["csv", "json"]
TableRow = dict[str, Any]


def text(
    plan: Plan, store: Store, form: Form, by: Sequence[str], times: bool, threshold: float | None
) -> str:
    """The settings, or their times to resurgence, as CSV or JSON with a newline at the end."""
    if times:
        rows = list(times_rows(times_to_resurgence(plan, store, threshold)))
    else:
        summary = aggregate_by(plan, store, by) if by else aggregate(plan, store)
        rows = settings_rows(summary)
    if form == "json":
        return json.dumps(rows, indent=2) + "\n"
    buffer = io.BytesIO()
    csv.write_csv(_table(rows), buffer)
    return buffer.getvalue().decode()


def settings_table(summary: Summary) -> pa.Table:
    """One row a setting, controls and those of 0 steps included."""
    return _table(settings_rows(summary))


def settings_rows(summary: Summary) -> list[TableRow]:
    """One row a setting; every row has every column."""
    names = dict.fromkeys(name for setting in summary.settings for name in setting.params)
    return [
        {name: setting.params.get(name) for name in names} | _numbers(setting)
        for setting in summary.settings
    ]


def _numbers(setting: Aggregate) -> TableRow:
    paired = setting.paired
    return {
        "is_control": setting.is_control,
        "trials_planned": setting.planned,
        "trials_scored": setting.scored,
        "trials_failed": setting.failed,
        "replicates": len(setting.resurgence_by_seed),
        "unlearning_failed": setting.unlearning_failed,
        "base_score": setting.base,
        "unlearned_score": setting.unlearned,
        "final_score": setting.final,
        "final_low": setting.final_low,
        "final_high": setting.final_high,
        "control_score": setting.control,
        **_interval("resurgence", paired.resurgence if paired else None),
        "p": paired.p if paired else None,
        "p_holm": setting.p_holm,
        **_interval("recovery", paired.recovery if paired else None),
        "retained_final": setting.retained,
        "never_known_final": setting.never_known,
    }


def _interval(name: str, estimate: Estimate | None) -> TableRow:
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None,) * 3
    finite = (v if v is not None and math.isfinite(v) else None for v in values)
    return dict(zip((name, f"{name}_low", f"{name}_high"), finite, strict=True))


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
            }


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A column of more than one type becomes text."""
    rows = list(rows)
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        values = [None if value is None else str(value) for value in values]
    return pa.array(
        [float(v) if v is not None else v for v in values] if kinds == {int, float} else values
    )
