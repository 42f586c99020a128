"""`resurge reproduce` and `resurge diff`: what made a trial, what came out again, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.audit.compare import (
    difference,
    machine_that_differs,
    measures,
    settings_that_differ,
)
from orchestrator.audit.find_trial import Found
from orchestrator.audit.reproduce import Reproduction
from orchestrator.cli.show.screen import bold
from orchestrator.cli.show.tables import new_table
from orchestrator.core.text import brief
from orchestrator.plan.labels import stage_label


def show_origin(found: Found, console: Console) -> None:
    """Everything that made the trial's numbers: stages, settings, seeds, data, versions."""
    console.print(bold("trial", f" {found.planned.digest}\n{found.label}"), soft_wrap=True)
    table = new_table("stage", "digest", "settings", right=["seconds"])
    made_with: Mapping[str, Any] | None = None
    for stage in (found.planned.base.model, *found.planned.final.stages()):
        record = found.reader.record(stage)
        made_with = record.provenance if record else made_with
        took = f"{record.seconds:.1f}" if record else "–"
        # All that it was told, but for its prompts: those are counted.
        told = {**stage.settings, **stage.settings.get("settings", {})}
        told.pop("settings", None)
        settings = ", ".join(
            f"{name} {_short(value)}" for name, value in told.items() if value != ""
        )
        table.add_row(stage_label(stage), stage.key, settings, took)
    console.print(table)
    if made_with is None:
        console.print(
            "not run: no stage of this trial has a record yet", soft_wrap=True, highlight=False
        )
        return
    # Machine, versions and code of the last stage that was done.
    values = dict(made_with)
    versions = values.pop("versions", {})
    values["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    values["base"] = ", ".join(f"{k} {v}" for k, v in values.get("base", {}).items()) or "bundled"
    for name, value in values.items():
        console.print(f"{name.replace('_', ' ')}: {value}", soft_wrap=True, highlight=False)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = {k: v for k, v in value.items() if v not in ("", {})}
        return "{" + ", ".join(f"{k} {_short(v)}" for k, v in inner.items()) + "}"
    return brief(value, 12)


def show_reproduction(result: Reproduction, console: Console) -> None:
    """Every number that came out otherwise, or that all are the same."""
    console.print(f"taken from the store: {', '.join(result.copied) or 'nothing'}", soft_wrap=True)
    console.print(f"made again: {', '.join(result.again)}", soft_wrap=True)
    for text in result.moved:
        console.print(f"not as it was: {text}", style="yellow", soft_wrap=True)
    same = f"{result.same_pictures} of {result.pictures} pictures are the same, byte for byte"
    if result.is_identical:
        count = len(result.differences)
        verdict = Text.assemble(("identical", "green"), f": all {count} numbers; {same}")
        console.print(verdict, soft_wrap=True)
        return
    table = new_table("number", "recorded", "again", "difference")
    for one in result.differences:
        if not one.is_identical:
            table.add_row(one.metric, *_side_by_side(one.recorded, one.again, ".6g", "+.3g"))
    console.print(table)
    console.print(Text.assemble(("not identical", "red"), f"; {same}"), soft_wrap=True)


def show_difference(one: Found, other: Found, console: Console) -> None:
    """Print what differs in settings and in the machine, then the numbers of both."""
    console.print(f"A {one.label}\nB {other.label}", soft_wrap=True)
    changed = [*settings_that_differ(one, other), *machine_that_differs(one, other)]
    if changed:
        table = new_table("what differs", "A", "B")
        for row in changed:
            table.add_row(*row)
        console.print(table)
    else:
        console.print("nothing differs between them")
    numbers = new_table("number", "A", "B", "B - A")
    a, b = measures(one), measures(other)
    for name in dict.fromkeys((*a, *b)):
        numbers.add_row(name, *_side_by_side(a.get(name), b.get(name), ".3f", "+.3f"))
    console.print(numbers)
    estimate = difference(one, other)
    if estimate is None:
        verdict = "no paired comparison: the two were not asked the same, or not by the same metric"
    else:
        sure = "excludes 0" if estimate.low > 0 or estimate.high < 0 else "includes 0"
        interval = f"[{estimate.low:+.3f}, {estimate.high:+.3f}]"
        gap = f"{estimate.value:+.3f} {interval}"
        verdict = f"final score, B - A, paired by picture: {gap}, which {sure}"
    console.print(verdict, soft_wrap=True)


def _side_by_side(a: float | None, b: float | None, form: str, gap_form: str) -> tuple[str, ...]:
    """Two numbers and what the second is more."""
    gap = "–" if a is None or b is None else format(b - a, gap_form)
    return (*("–" if value is None else format(value, form) for value in (a, b)), gap)
