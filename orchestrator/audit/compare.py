"""Two trials side by side: what differs between them, and what that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.audit.find_trial import Found
from orchestrator.core.stage import Stage
from orchestrator.core.text import number
from orchestrator.plan.labels import stage_label
from orchestrator.results.measure import primary
from orchestrator.stats.paired import Estimate, paired_interval

DifferenceRow = tuple[str, ...]
"""What, in the one trial, in the other."""


def show_difference(one: Found, other: Found, console: Console) -> None:
    """Print what differs in settings and in the machine, then the numbers of both."""
    console.print(f"A {one.label}\nB {other.label}", soft_wrap=True)
    changed = [*settings_that_differ(one, other), *machine_that_differs(one, other)]
    if changed:
        console.print(_table(("what differs", "A", "B"), changed))
    else:
        console.print("nothing differs between them")
    console.print(_table(("number", "A", "B", "B - A"), list(_numbers(one, other))))
    console.print(_verdict(difference(one, other)), soft_wrap=True)


def settings_that_differ(one: Found, other: Found) -> Iterator[DifferenceRow]:
    """Setting by setting along the two chains, the base first, then the pictures and the scores."""
    for a, b in zip_longest(_chain(one), _chain(other)):
        if a is None or b is None:
            yield "a stage more", *(stage_label(s) if s else "–" for s in (a, b))
        elif a.digest != b.digest:
            name = f"{a.kind} {a.plugin}" if a.plugin == b.plugin else a.kind
            values = [_flat(_told(stage)) for stage in (a, b)]
            for key in dict.fromkeys((*values[0], *values[1])):
                pair = [_short(v.get(key)) for v in values]
                if values[0].get(key) != values[1].get(key):
                    yield f"{name}: {key}", pair[0], pair[1]


def _chain(found: Found) -> list[Stage]:
    final = found.planned.final
    return [*reversed(list(final.model.ancestry())), final.sample, *final.scores]


def _told(stage: Stage) -> dict[str, Any]:
    own = {"plug-in": stage.plugin, "version": stage.version, "seed": stage.seed}
    return {**own, **stage.settings}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; "settings" itself is no part of a name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = before if key == "settings" else f"{before}.{key}".lstrip(".")
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _short(value: Any) -> str:
    text = f"({len(value)})" if isinstance(value, list) and len(value) > 3 else number(value)
    return f"{text[:16]}…" if len(text) == 64 else text


def machine_that_differs(one: Found, other: Found) -> Iterator[DifferenceRow]:
    """Where and with what the two were sampled."""
    records = [f.reader.record(f.planned.final.sample) for f in (one, other)]
    values = [_flat(record.provenance) if record else {} for record in records]
    for key in dict.fromkeys((*values[0], *values[1])):
        if values[0].get(key) != values[1].get(key):
            yield f"machine: {key}", *(str(v.get(key, "–")) for v in values)


def _numbers(one: Found, other: Found) -> Iterator[DifferenceRow]:
    columns = [_measures(found) for found in (one, other)]
    for name in dict.fromkeys((*columns[0], *columns[1])):
        a, b = (column.get(name) for column in columns)
        gap = "–" if a is None or b is None else f"{b - a:+.3f}"
        yield name, *("–" if v is None else f"{v:.3f}" for v in (a, b)), gap


def _measures(found: Found) -> dict[str, float | None]:
    m = found.measured
    paired = m.paired
    return {
        "base": m.base.erased,
        "unlearned": m.unlearned.erased,
        "final": m.final.erased,
        "resurgence": paired.resurgence.value if paired else None,
        "recovery": paired.recovery.value if paired and paired.recovery else None,
        "control": m.control,
        "retained": m.final.retained,
        **m.metrics,
    }


def difference(one: Found, other: Found) -> Estimate | None:
    """Final score of B minus A's, paired by picture; None if they were not asked the same."""
    points = [found.planned.final for found in (one, other)]
    scores = [primary(point) for point in points]
    values = [found.reader.values(point) for found, point in zip((one, other), points, strict=True)]
    same_metric = len({(s.plugin, s.version, str(s.settings)) for s in scores if s}) == 1
    same_question = _asked(points[0].sample) == _asked(points[1].sample)
    if values[0] is None or values[1] is None or not same_metric or not same_question:
        return None
    a, b = values[0][None], values[1][None]
    return paired_interval(a, a, b).resurgence


def _asked(sample: Stage) -> tuple[Any, Any]:
    return sample.settings["probes"], sample.settings["settings"]


def _verdict(estimate: Estimate | None) -> str:
    if estimate is None:
        return "no paired comparison: the two were not asked the same, or not by the same metric"
    sure = "excludes 0" if estimate.low > 0 or estimate.high < 0 else "includes 0"
    interval = f"[{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"final score, B - A, paired by picture: {estimate.value:+.3f} {interval}, which {sure}"


def _table(heads: tuple[str, ...], rows: list[Any]) -> Table:
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table
