"""Trials -> settings: seeds as replicates, ranked by resurgence, printed as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table

from orchestrator.analysis import Array, Paired, mean_interval, paired_bootstrap
from orchestrator.describe import number, short_name
from orchestrator.measure import Measured, Reader, primary
from orchestrator.plan import Plan
from orchestrator.store import Store
from orchestrator.trial import Scalar


@dataclass(frozen=True)
class Aggregate:
    """A setting: the means over its seeds. What no seed has a record of yet is None.

    `paired` holds resurgence and recovery with intervals over the seeds that are scored, which are
    `scored` of `planned`. `unlearning_failed` counts the seeds whose unlearning never worked: with
    any, the setting ranks behind those that have something to bring back.
    """

    params: Mapping[str, Scalar]
    is_control: bool
    steps: int
    planned: int
    scored: int
    failed: int
    unlearning_failed: int
    base: float | None
    unlearned: float | None
    final: float | None
    control: float | None
    retained: float | None
    never_known: float | None
    paired: Paired | None
    resurgence_by_seed: tuple[float, ...]
    final_low: float | None
    final_high: float | None

    @property
    def resurgence(self) -> float | None:
        """Mean resurgence."""
        return self.paired.resurgence.value if self.paired else None


@dataclass(frozen=True)
class Summary:
    """A sweep's settings, controls included, the largest resurgence first.

    `axes` are the parameters on which they differ; `caption` says what was measured.
    """

    settings: tuple[Aggregate, ...]
    axes: tuple[str, ...]
    caption: str


def aggregate(plan: Plan, store: Store, reader: Reader | None = None) -> Summary:
    """The trials with their seeds taken together."""
    reader = reader or Reader(plan, store)
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for measured in reader.all():
        groups.setdefault(_setting(measured), []).append(measured)
    settings = sorted((_aggregate(reader, group) for group in groups.values()), key=_rank)
    axes = tuple(axis for axis in plan.varying if axis != "seed")
    return Summary(tuple(settings), axes, caption(plan))


def _setting(measured: Measured) -> tuple[object, ...]:
    params = measured.planned.trial.params.items()
    return (measured.planned.is_control, *((k, v) for k, v in params if k != "seed"))


def _rank(setting: Aggregate) -> tuple[bool, bool, bool, float]:
    value = setting.resurgence
    return (setting.is_control, value is None, setting.unlearning_failed > 0, -(value or 0.0))


def _aggregate(reader: Reader, trials: Sequence[Measured]) -> Aggregate:
    scored = [m for m in trials if m.paired is not None]
    replicates = list({m.planned.final.sample.digest: m for m in scored}.values())
    stacks = _stacks(reader, replicates)
    final = mean_interval(stacks[2]) if stacks else None
    first = trials[0].planned
    return Aggregate(
        params={k: v for k, v in first.trial.params.items() if k != "seed"},
        is_control=first.is_control,
        steps=first.steps,
        planned=len(trials),
        scored=len(scored),
        failed=sum(m.status == "failed" for m in trials),
        unlearning_failed=sum(bool(m.unlearning_failed) for m in trials),
        base=_mean(m.base.erased for m in trials),
        unlearned=_mean(m.unlearned.erased for m in replicates or trials),
        final=_mean(m.final.erased for m in replicates or trials),
        control=_mean(m.control for m in trials),
        retained=_mean(m.final.retained for m in replicates or trials),
        never_known=_mean(m.final.never_known for m in replicates or trials),
        paired=paired_bootstrap(*stacks) if stacks else None,
        resurgence_by_seed=tuple(m.paired.resurgence.value for m in replicates if m.paired),
        final_low=final.low if final else None,
        final_high=final.high if final else None,
    )


def _stacks(reader: Reader, trials: Sequence[Measured]) -> tuple[Array, Array, Array] | None:
    """Values of base, unlearned and final: shape (seeds, prompts, images).

    A method without randomness gives all seeds one unlearned model: where that is also the final
    one, it is one replicate and not as many as there are seeds.
    """
    if not trials:
        return None
    points = [(m.planned.base, m.planned.unlearned, m.planned.final) for m in trials]
    base, unlearned, final = (
        np.stack([values for p in column if (values := reader.values(p)) is not None])
        for column in zip(*points, strict=True)
    )
    return base, unlearned, final


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def render(summary: Summary, console: Console) -> None:
    """Print the settings that fine-tune, over a line that says what was measured.

    Settings of 0 steps are left out: their resurgence is 0 by construction. So are controls: their
    score is a column. No number is cut off where the console is narrow; its lines wrap.
    """
    shown = [s for s in summary.settings if not s.is_control and s.steps > 0]
    flags = [_flag(setting) for setting in shown]
    sheet = _sheet(summary.axes, has_flags=any(flags))
    for setting, flag in zip(shown, flags, strict=True):
        cells = [*_axis_cells(setting, summary.axes), *_number_cells(setting)]
        sheet.add_row(*cells, *([flag] if any(flags) else []))
    _print_whole(sheet, console)
    console.print(summary.caption, style="dim", soft_wrap=True, highlight=False)


def _print_whole(sheet: Table, console: Console) -> None:
    unbounded = console.options.update(max_width=1_000)
    natural = Measurement.get(console, unbounded, sheet).maximum
    segments = console.render(sheet, unbounded.update(max_width=natural))
    console.print(Segments(segments), end="", soft_wrap=True)


def _sheet(axes: Sequence[str], has_flags: bool) -> Table:
    sheet = Table(box=None, pad_edge=False, header_style="bold")
    for axis in axes:
        sheet.add_column(_header(axis, axes), no_wrap=True)
    for name in ("base", "un-\nlearned", "final", "resurgence", "re-\ncovery", "control"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for name in ("retained", "never\nknown"):
        sheet.add_column(name, justify="right", no_wrap=True)
    if has_flags:
        sheet.add_column("", style="yellow", no_wrap=True)
    return sheet


def caption(plan: Plan) -> str:
    """What the numbers are: metric, guidance, sampler, images, prompts, seeds."""
    final = plan.trials[0].final
    score, sampling = primary(final), final.sample.settings["settings"]
    asked = [p for p in final.sample.settings["probes"] if p["role"] == "erased"]
    seeds = {planned.trial.params.get("seed") for planned in plan.trials}
    parts = [
        f"{score.plugin} v{score.version}" if score else "no image metric",
        f"guidance {number(sampling['guidance'])}",
        f"{str(sampling['sampler']).upper()} {sampling['sampler_steps']} steps",
        f"{len(asked)} prompts × {sampling['images_per_prompt']} images × {len(seeds)} seeds",
        "95% intervals: paired bootstrap, clustered by prompt",
    ]
    return " · ".join(parts)


def _header(axis: str, axes: Iterable[str]) -> str:
    """The axis's last word where no other axis ends in it."""
    last = axis.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in axes) == 1
    return short_name(last if alone else axis)


def _axis_cells(setting: Aggregate, axes: Iterable[str]) -> list[str]:
    values = [setting.params.get(axis) for axis in axes]
    return ["" if value is None else number(value) for value in values]


def _number_cells(setting: Aggregate) -> list[str]:
    paired = setting.paired
    back = paired.resurgence if paired else None
    share = paired.recovery if paired else None
    is_clear = back is not None and back.low > 0 and not setting.unlearning_failed
    style = "bold" if is_clear else "default"
    return [
        _score(setting.base),
        _score(setting.unlearned),
        _score(setting.final),
        f"[{style}]{back.value:+.2f}[/] \\[{back.low:.2f}, {back.high:.2f}]" if back else "–",
        f"{share.value:.0%}" if share else "–",
        _score(setting.control),
        _score(setting.retained),
        _score(setting.never_known),
    ]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _flag(setting: Aggregate) -> str:
    marks = []
    if setting.unlearning_failed:
        marks.append(f"unlearning failed ({setting.unlearning_failed} of {setting.planned})")
    if setting.failed:
        marks.append(f"{setting.failed} failed")
    missing = setting.planned - setting.scored - setting.failed
    if missing > 0:
        marks.append(f"{missing} of {setting.planned} seeds to come")
    return ", ".join(marks)
