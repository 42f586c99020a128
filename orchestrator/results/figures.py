"""The picture of a sweep: curves of what came back, over the images themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import axis_value, number
from orchestrator.plan.plan import Plan, PlannedTrial
from orchestrator.results.measure import TrialReader
from orchestrator.results.pictures import Shown, cell, read_images
from orchestrator.results.settings import Aggregate, Summary, aggregate
from orchestrator.store.store import Store

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart by every reader."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D")
STRIP_COLUMNS = 8
STRIP_STEPS = 3
STRIP_CELL_PX = 128
_INK = "#333333"
_FAINT = "#888888"
_WARNING = "#A61C00"
_CURVES_INCHES = 3.1
_STRIP_FRAME_INCHES = 0.75
_STRIP_ROW_INCHES = 0.62


@dataclass(frozen=True)
class Style:
    """How a line looks in every panel."""

    label: str
    colour: str
    dash: Any
    marker: str


@dataclass(frozen=True)
class Strip:
    """Images of one trial: a row a model, the same prompts and noise in every row."""

    title: str
    labels: tuple[str, ...]
    rows: tuple[tuple[Shown, ...], ...]


def figure(plan: Plan, store: Store, path: Path) -> None:
    """Write the curves and, below them, images of the setting that brought the most back."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # what users write may hold a $
        _draw(plan, store, path)


def _draw(plan: Plan, store: Store, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reader = TrialReader(plan, store)
    summary = aggregate(plan, store, reader)
    panels, strip = _panels(summary), _strip(reader, summary)
    heights = [_CURVES_INCHES]
    if strip is not None:
        heights.append(_STRIP_FRAME_INCHES + _STRIP_ROW_INCHES * len(strip.rows))
    sheet = Figure(figsize=(8.6, sum(heights)), layout="constrained", facecolor="white")
    FigureCanvasAgg(sheet)
    parts = sheet.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_curves(parts[0], panels, plan, summary.axes)
    if strip is not None:
        _draw_strip(parts[1], strip)
    notes = (textwrap.fill(warning, 150) for warning in summary.warnings())
    sheet.supxlabel("\n".join([summary.caption, *notes]), fontsize=6.5, color=_FAINT)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=200)


# Curves


def _panels(summary: Summary) -> dict[str, list[Aggregate]]:
    """Settings with scores by concept and unlearning."""
    panels: dict[str, list[Aggregate]] = {}
    for setting in summary.settings:
        if not setting.is_control and setting.paired is not None:
            words = [str(setting.params.get("unlearn.method", "no unlearning")).upper()]
            for axis in summary.axes:
                value = setting.params.get(axis)
                is_of_method = axis.startswith("unlearn") and not axis.endswith(".method")
                if is_of_method and value is not None:
                    words.append(f"{axis.rpartition('.')[2]} {number(value)}")
            if "concept" in summary.axes:
                words.append(f"· {number(setting.params['concept'])}")
            panels.setdefault(" ".join(words), []).append(setting)
    if not panels:
        raise ResurgeError("there is nothing to draw yet: no trial has all its scores")
    return dict(sorted(panels.items()))


def _draw_curves(
    sheet: Any, panels: Mapping[str, Sequence[Aggregate]], plan: Plan, varying: Iterable[str]
) -> None:
    """A panel a method, a line a data set and rate."""
    steps = {planned.steps_param for planned in plan.trials}
    axes = [
        axis
        for axis in varying
        if axis != "concept" and not axis.startswith("unlearn") and axis not in steps
    ]
    styles = _styles(axes, {_key(s, axes) for settings in panels.values() for s in settings})
    places = sheet.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (title, settings) in zip(places, panels.items(), strict=True):
        gap = max(s.steps for s in settings) / 60
        for i, (key, style) in enumerate(styles.items()):
            dodge = (i - (len(styles) - 1) / 2) * gap
            _draw_line(place, style, [s for s in settings if _key(s, axes) == key], dodge)
        _draw_level(place, "base model", [s.base for s in settings], (0, (5, 3)))
        _draw_level(place, "never-known concept", [s.never_known for s in settings], (0, (1, 2)))
        _dress(place, {0, *(s.steps for s in settings)})
        flaws = _flaws(settings)
        place.set_title(
            f"{title} ({flaws})" if flaws else title,
            fontsize=10,
            fontweight="bold",
            loc="left",
            color=_WARNING if flaws else _INK,
        )
    concepts = sorted({planned.trial.concept for planned in plan.trials})
    of = f"“{number(concepts[0])}”" if len(concepts) == 1 else "the concept"
    places[0].set_ylabel(f"accuracy of {of}", fontsize=9)
    sheet.legend(
        *places[0].get_legend_handles_labels(),
        loc="outside right center",
        frameon=False,
        fontsize=8,
        handlelength=2.6,
        labelspacing=0.7,
    )


def _flaws(settings: Sequence[Aggregate]) -> str:
    """What keeps a panel's settings from being ranked."""
    flaws = {
        "unlearning failed": any(s.unlearning_failed for s in settings),
        "model ruined": any(s.model_ruined for s in settings),
    }
    return ", ".join(what for what, is_so in flaws.items() if is_so)


def _styles(axes: Sequence[str], keys: Collection[tuple[Any, ...]]) -> dict[tuple[Any, ...], Style]:
    """How each line looks. Colour is the data set; dash and marker are everything else."""

    def part(key: tuple[Any, ...], is_data: bool) -> tuple[Any, ...]:
        pairs = zip(axes, key, strict=True)
        return tuple(value for axis, value in pairs if axis.endswith(".dataset") == is_data)

    keys = sorted(keys, key=lambda key: [_sortable(value) for value in key])
    colours = list(dict.fromkeys(part(key, True) for key in keys))
    dashes = list(dict.fromkeys(part(key, False) for key in keys))
    styles = {}
    for key in keys:
        i, j = colours.index(part(key, True)), dashes.index(part(key, False))
        words = [axis_value(axis, value, " ") for axis, value in zip(axes, key, strict=True)]
        styles[key] = Style(
            label=", ".join(words) or "final",
            colour=COLOURS[i % len(COLOURS)],
            dash=DASHES[j % len(DASHES)],
            marker=MARKERS[j % len(MARKERS)],
        )
    return styles


def _key(setting: Aggregate, axes: Iterable[str]) -> tuple[Any, ...]:
    """What tells a panel's lines apart."""
    return tuple(setting.params.get(axis) for axis in axes)


def _sortable(value: Any) -> tuple[str, float, str]:
    """Numbers by size, text by letter, neither against the other."""
    if isinstance(value, int | float):
        return ("number", float(value), "")
    return ("text", 0.0, str(value))


def _draw_line(axis: Any, style: Style, settings: Sequence[Aggregate], dodge: float) -> None:
    """Means over seeds with 95% whiskers; step 0 is the unlearned model.

    Whiskers and not bands: they stay apart where many lines cross, and say nothing of step counts
    that were not measured.
    """
    points = {s.steps: (s.final, s.final_low, s.final_high) for s in settings}
    if settings and 0 not in points:
        points[0] = (settings[0].unlearned,) * 3
    steps = sorted(points)
    places = [step + dodge if step else 0 for step in steps]  # all lines begin at one model
    means = [points[step][0] for step in steps]
    axis.vlines(
        places,
        [points[step][1] for step in steps],
        [points[step][2] for step in steps],
        color=style.colour,
        alpha=0.45,
        linewidth=1.4,
    )
    axis.plot(
        places,
        means,
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        markersize=4,
        linewidth=1.6,
        label=style.label,
    )


def _draw_level(axis: Any, label: str, values: Iterable[float | None], dash: Any) -> None:
    known = [value for value in values if value is not None]
    if known:
        mean = sum(known) / len(known)
        axis.axhline(mean, color=_FAINT, linestyle=dash, linewidth=1.1, label=label, zorder=1)


def _dress(axis: Any, steps: Collection[int]) -> None:
    axis.set_xlabel("fine-tuning steps", fontsize=9)
    axis.set_ylim(-0.03, 1.05)
    axis.set_xticks(sorted(steps))
    axis.tick_params(labelsize=8, color=_FAINT)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_FAINT)


# Images


def _strip(reader: TrialReader, summary: Summary) -> Strip | None:
    """The first seed of the setting with the largest resurgence, all its step counts."""
    shown = (s for s in summary.settings if not s.is_control and s.paired and s.steps > 0)
    best = next(shown, None)
    if best is None:
        return None
    members = _members(reader.plan, best)
    first = members[0]
    models = [("base", first.base.sample), ("unlearned", first.unlearned.sample)]
    models += [(f"{t.steps} steps", t.final.sample) for t in members[-STRIP_STEPS:]]
    labels, rows = [], []
    for label, stage in models:
        if (record := reader.record(stage)) is not None:
            # The first images of each prompt: not chosen by what they show.
            prompts = read_images(reader.store, record)[:STRIP_COLUMNS]
            each = max(1, STRIP_COLUMNS // len(prompts))
            labels.append(label)
            rows.append(tuple(shown for prompt in prompts for shown in prompt[:each]))
    method = str(best.params.get("unlearn.method", "")).upper()
    tuned = [a for a in summary.axes if a.startswith("finetune") and not a.endswith(".steps")]
    words = ", ".join(axis_value(axis, best.params.get(axis), " ") for axis in tuned)
    title = f"“{best.params['concept']}” unlearned with {method}, then fine-tuned ({words})"
    return Strip(title, tuple(labels), tuple(rows))


def _members(plan: Plan, best: Aggregate) -> list[PlannedTrial]:
    """The trials of the setting's trajectory in one seed, fewest steps first."""

    def is_alike(planned: PlannedTrial) -> bool:
        """Whether nothing but the seed and the steps tells them apart."""
        params = planned.trial.params
        names = (params.keys() | best.params.keys()) - {"seed", planned.steps_param}
        return all(params.get(name) == best.params.get(name) for name in names)

    alike = [t for t in plan.trials if not t.is_control and is_alike(t)]
    seed = alike[0].trial.seed
    members = [t for t in alike if t.trial.seed == seed and 0 < t.steps <= best.steps]
    return sorted(members, key=lambda trial: trial.steps)


def _draw_strip(sheet: Any, strip: Strip) -> None:
    cells = [[cell(shown.image, STRIP_CELL_PX) for shown in row] for row in strip.rows]
    size = max(max(image.size) for row in cells for image in row) + 6
    image = Image.new("RGB", (size * len(cells[0]), size * len(cells)), "white")
    for y, row in enumerate(cells):
        for x, pasted in enumerate(row):
            image.paste(pasted, (x * size + 3, y * size + 3))
    axis = sheet.subplots()
    axis.imshow(image, interpolation="none")
    high, wide = image.height / len(strip.rows), image.width / len(strip.rows[0])
    axis.set_yticks([(i + 0.5) * high for i in range(len(strip.rows))], strip.labels)
    prompts = [textwrap.fill(shown.prompt, 14) for shown in strip.rows[0]]
    axis.set_xticks([(i + 0.5) * wide for i in range(len(prompts))], prompts)
    axis.tick_params(length=0, labelsize=8, labelcolor=_INK)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[:].set_visible(False)
    axis.set_title(strip.title, fontsize=9, loc="left", color=_INK)
