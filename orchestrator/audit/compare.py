"""Two trials side by side: what differs between them, and what that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from orchestrator.audit.find_trial import Found
from orchestrator.core.stage import Stage
from orchestrator.core.text import brief
from orchestrator.plan.labels import stage_label
from orchestrator.stats.paired import Estimate, paired_interval

DifferenceRow = tuple[str, ...]
"""What, in the one trial, in the other."""


def settings_that_differ(one: Found, other: Found) -> Iterator[DifferenceRow]:
    """Setting by setting along the two chains, the base first, then the pictures and the scores."""
    for a, b in zip_longest(_chain(one), _chain(other)):
        if a is None or b is None:
            yield "a stage more", *(stage_label(s) if s else "–" for s in (a, b))
        elif a.digest != b.digest:
            name = f"{a.kind} {a.plugin}" if a.plugin == b.plugin else a.kind
            own = [{"plug-in": s.plugin, "version": s.version, "seed": s.seed} for s in (a, b)]
            told = [_flat({**o, **s.settings}) for o, s in zip(own, (a, b), strict=True)]
            for key in dict.fromkeys((*told[0], *told[1])):
                if told[0].get(key) != told[1].get(key):
                    yield f"{name}: {key}", *(brief(v.get(key), 16) for v in told)


def _chain(found: Found) -> list[Stage]:
    final = found.planned.final
    return [*reversed(list(final.model.ancestry())), *final.evaluation()]


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names; "settings" itself is no part of a name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = before if key == "settings" else f"{before}.{key}".lstrip(".")
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def machine_that_differs(one: Found, other: Found) -> Iterator[DifferenceRow]:
    """Where and with what the two were sampled."""
    records = [f.reader.record(f.planned.final.sample) for f in (one, other)]
    values = [_flat(record.provenance) if record else {} for record in records]
    for key in dict.fromkeys((*values[0], *values[1])):
        if values[0].get(key) != values[1].get(key):
            yield f"machine: {key}", *(str(v.get(key, "–")) for v in values)


def measures(found: Found) -> dict[str, float | None]:
    """The numbers that two trials are compared by."""
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
    scores = [point.primary for point in points]
    values = [found.reader.values(point) for found, point in zip((one, other), points, strict=True)]
    same_metric = len({(s.plugin, s.version, str(s.settings)) for s in scores if s}) == 1
    asked = [(p.sample.settings["probes"], p.sample.settings["settings"]) for p in points]
    if values[0] is None or values[1] is None or not same_metric or asked[0] != asked[1]:
        return None
    a, b = values[0][None], values[1][None]
    return paired_interval(a, a, b).resurgence
