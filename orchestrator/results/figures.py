"""The picture of a sweep: curves of what came back, over the images themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.core.artifacts import Role
from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import axis_value, number
from orchestrator.plan.plan import Plan, PlannedTrial
from orchestrator.results.chains import Chain, Point, chains
from orchestrator.results.groups import ERASED, Group
from orchestrator.results.measure import TrialReader
from orchestrator.results.pictures import Shown, cell, read_images
from orchestrator.results.settings import Aggregate, Summary, aggregate
from orchestrator.stats.paired import Estimate
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
_ROW_INCHES = 1.5
_WAY_INCHES = 2.2
_DOT_INCHES = 0.22
_BESIDE: Mapping[Role, str] = {
    "synonym": "synonyms", "retained": "retained", "related": "related", "other": "others",
}  # fmt: skip
PANELS_ABREAST = 4
CONCEPTS_APART = 6
"""Of how many concepts that are erased together each has a line."""
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


def figure(plan: Plan, store: Store, path: Path, reader: TrialReader | None = None) -> None:
    """Write the curves and, below them, images of the setting that brought the most back."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # what users write may hold a $
        _draw(reader or TrialReader(plan, store), path)


def _draw(reader: TrialReader, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plan, store = reader.plan, reader.store
    summary = aggregate(plan, store, reader)
    has_way = any(planned.way for planned in plan.trials)
    ways = _ways(chains(plan, store, reader), summary.axes) if has_way else {}
    panels, strip = _panels(summary), _strip(reader, summary)
    curves = _curves(summary)
    blocks = _blocks(panels)
    row_inches = _CURVES_INCHES + _ROW_INCHES * (len(curves) - 1) + _WAY_INCHES * bool(ways)
    heights = [row_inches] * len(blocks)
    if not summary.is_tuned:
        heights = [1.0 + _DOT_INCHES * len(summary.shown)]
    if strip is not None:
        heights.append(_STRIP_FRAME_INCHES + _STRIP_ROW_INCHES * len(strip.rows))
    sheet = Figure(figsize=(8.6, sum(heights)), layout="constrained", facecolor="white")
    FigureCanvasAgg(sheet)
    parts = sheet.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if summary.is_tuned:
        styles = _styles_of(panels, plan, summary.axes)
        for part, block in zip(parts, blocks, strict=False):
            _draw_block(part, block, curves, styles, {t: ways.get(t) for t in block if ways})
    else:
        _draw_dots(parts[0], summary, curves)
    if strip is not None:
        _draw_strip(parts[-1], strip)
    notes = (textwrap.fill(warning, 150) for warning in summary.warnings())
    sheet.supxlabel("\n".join([summary.caption, *notes]), fontsize=6.5, color=_FAINT)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=200)


# Curves


@dataclass(frozen=True)
class Curve:
    """What a row of panels shows of a setting: one group's scores on the three models."""

    title: str
    role: Role

    def of(self, setting: Aggregate) -> tuple[float | None, float | None, Estimate | None]:
        """Base, unlearned and final; None where there is none."""
        if self.role == "erased":
            low, high = setting.final_low, setting.final_high
            known = setting.final is not None and low is not None and high is not None
            last = Estimate(setting.final, low, high) if known else None  # type: ignore[arg-type]
            return setting.base, setting.unlearned, last
        group = setting.of_role(self.role)
        return (group.base, group.unlearned, group.after) if group else (None, None, None)


def _curves(summary: Summary) -> list[Curve]:
    """The erased concept, and each other group of which some setting has numbers."""
    concepts = sorted({str(s.params["concept"]) for s in summary.settings if not s.is_control})
    of = f"“{number(concepts[0])}”" if len(concepts) == 1 else "what is erased"
    asked = {one.group for s in summary.settings for one in s.groups}
    beside = [Curve(title, role) for role, title in _BESIDE.items() if Group(role) in asked]
    return [Curve(f"accuracy of {of}", "erased"), *beside]


def _panels(summary: Summary) -> dict[str, list[Aggregate]]:
    """Settings with scores by concept and unlearning."""
    panels: dict[str, list[Aggregate]] = {}
    for setting in summary.settings:
        if not setting.is_control and setting.paired is not None:
            panels.setdefault(_title(setting.params, summary.axes), []).append(setting)
    if not panels:
        raise ResurgeError("there is nothing to draw yet: no trial has all its scores")
    return dict(sorted(panels.items()))


def _title(params: Mapping[str, Any], axes: Collection[str]) -> str:
    """What was erased, and how."""
    words = [str(params.get("unlearn.method", "no unlearning")).upper()]
    for axis in axes:
        value = params.get(axis)
        is_of_method = axis.startswith("unlearn") and not axis.endswith(".method")
        if is_of_method and value is not None:
            words.append(axis_value(axis, value, " "))
    if "concept" in axes:
        words.append(f"· {number(params['concept'])}")
    return " ".join(words)


def _ways(found: Sequence[Chain], axes: Collection[str]) -> dict[str, list[Point]]:
    """By panel the models up to where trials end, of the first of its settings."""
    ways: dict[str, list[Point]] = {}
    for chain in found:
        if not chain.is_control:
            last = max(p.passage.position for p in chain.points)
            points = [p for p in chain.points if not p.passage.aside and p.passage.position < last]
            ways.setdefault(_title(chain.params, axes), points)
    return ways


def _blocks(panels: Mapping[str, list[Aggregate]]) -> list[dict[str, list[Aggregate]]]:
    """The panels, some side by side and the others below them."""
    titles = list(panels)
    rows = -(-len(titles) // PANELS_ABREAST)
    width = -(-len(titles) // rows)
    parts = (titles[begin : begin + width] for begin in range(0, len(titles), width))
    return [{title: panels[title] for title in part} for part in parts]


@dataclass(frozen=True)
class Lines:
    """How the lines of all panels look, and by which axes a setting has its line."""

    axes: tuple[str, ...]
    styles: Mapping[tuple[Any, ...], Style]


def _styles_of(
    panels: Mapping[str, Sequence[Aggregate]], plan: Plan, varying: Iterable[str]
) -> Lines:
    """A line a data set and rate."""
    steps = {planned.steps_param for planned in plan.trials}
    axes = tuple(
        axis
        for axis in varying
        if axis != "concept" and not axis.startswith("unlearn") and axis not in steps
    )
    keys = {_key(s, axes) for settings in panels.values() for s in settings}
    return Lines(axes, _styles(axes, keys))


def _draw_block(
    sheet: Any,
    panels: Mapping[str, Sequence[Aggregate]],
    curves: Sequence[Curve],
    lines: Lines,
    ways: Mapping[str, Sequence[Point] | None],
) -> None:
    """A column a method; a row for the way to the unlearned model, then one a group."""
    heights = [_CURVES_INCHES, *[_ROW_INCHES] * (len(curves) - 1)]
    heights = [*([_WAY_INCHES] if ways else []), *heights]
    places = sheet.subplots(len(heights), len(panels), squeeze=False, height_ratios=heights)
    for column, (title, settings) in enumerate(panels.items()):
        if ways:
            _draw_way(places[0][column], ways.get(title) or ())
        for row, curve in enumerate(curves, start=int(bool(ways))):
            place = places[row][column]
            _draw_panel(place, curve, settings, lines)
            if column == 0:
                place.set_ylabel(curve.title, fontsize=9)
            if row == len(heights) - 1:
                place.set_xlabel("fine-tuning steps", fontsize=9)
        flaws = _flaws(settings)
        places[0][column].set_title(
            textwrap.fill(f"{title} ({flaws})" if flaws else title, 72 // len(panels)),
            fontsize=10,
            fontweight="bold",
            loc="left",
            color=_WARNING if flaws else _INK,
        )
    _share_scale(places[int(bool(ways)) :])
    if ways:
        _share_scale(places[:1])
        places[0][0].set_ylabel("on the way", fontsize=9)
    sheet.legend(
        *_legend([place for place in places[: 1 + bool(ways), 0]]),
        loc="outside right center",
        frameon=False,
        fontsize=8,
        handlelength=2.6,
        labelspacing=0.7,
    )


def _legend(places: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels; of two rows, whose colours mean other things, each under its name."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    labels: list[str] = []
    for place in places:
        if len(places) > 1:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append("on the way:" if not labels else "\nfine-tuned:")
        found = place.get_legend_handles_labels()
        handles, labels = handles + found[0], labels + found[1]
    return handles, labels


def _draw_panel(place: Any, curve: Curve, settings: Sequence[Aggregate], lines: Lines) -> None:
    gap = max(s.steps for s in settings) / 60
    for i, (key, style) in enumerate(lines.styles.items()):
        dodge = (i - (len(lines.styles) - 1) / 2) * gap
        _draw_line(place, style, curve, [s for s in settings if _key(s, lines.axes) == key], dodge)
    _draw_level(place, "base model", [curve.of(s)[0] for s in settings], (0, (5, 3)))
    if curve.role == "erased":
        _draw_level(place, "never-known concept", [s.never_known for s in settings], (0, (1, 2)))
    _dress(place)
    place.set_xticks(sorted({0, *(s.steps for s in settings)}))


def _draw_way(place: Any, points: Sequence[Point]) -> None:
    """Each erased concept's score at every model, and the other groups'; of many concepts one."""
    groups = dict.fromkeys(group for point in points for group in point.scores)
    concepts = [group for group in groups if group.role == "erased" and group.concept is not None]
    if not 0 < len(concepts) <= CONCEPTS_APART:
        concepts = [ERASED]
    looks = {
        group: (number(group.concept or "erased"), COLOURS[i % len(COLOURS)], "-", MARKERS[i % 4])
        for i, group in enumerate(concepts)
    }
    looks |= {
        Group(role): (title, "#555555", dash, "")
        for (role, title), dash in zip(_BESIDE.items(), (":", "--", "-.", "--"), strict=True)
        if Group(role) in groups
    }
    for i, (group, (label, colour, dash, marker)) in enumerate(looks.items()):
        known = [(n, p.scores[group]) for n, p in enumerate(points) if group in p.scores]
        at = [n + 0.05 * (i - (len(looks) - 1) / 2) for n, _ in known]
        for x, (_, one) in zip(at, known, strict=True):
            place.vlines(x, one.low, one.high, color=colour, alpha=0.35, linewidth=1.2)
        style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
        place.plot(at, [one.value for _, one in known], linewidth=1.4, label=label, **style)
    _dress(place)
    labels = [textwrap.fill(number(p.passage.label).replace("+", "+ "), 11) for p in points]
    place.set_xticks(range(len(points)), labels)
    place.tick_params(axis="x", labelsize=6.5)


def _draw_dots(sheet: Any, summary: Summary, curves: Sequence[Curve]) -> None:
    """Of a sweep that fine-tunes nowhere: a row a setting, a column a group."""
    settings = sorted(
        (s for s in summary.shown if s.paired), key=lambda s: _title(s.params, summary.axes)
    )
    places = sheet.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for i, (place, curve) in enumerate(zip(places, curves, strict=True)):
        for row, setting in enumerate(settings):
            base, _, after = curve.of(setting)
            if base is not None and after is not None:
                place.hlines(row, after.low, after.high, color=COLOURS[i], alpha=0.5)
                place.plot(after.value, row, "o", color=COLOURS[i], markersize=4.5)
                place.plot(base, row, "|", color=_FAINT, markersize=9)
        _dress(place)
        place.grid(axis="y", visible=False)
        place.grid(axis="x", color="#e8e8e8", linewidth=0.6)
        place.set_title(curve.title, fontsize=9, loc="left", color=_INK)
    titles = [_title(s.params, summary.axes) for s in settings]
    places[0].set_yticks(range(len(settings)), [textwrap.shorten(t, 60) for t in titles])
    places[0].set_ylim(len(settings) - 0.5, -0.5)
    low, high = _common([place.get_xlim() for place in places])
    for place in places:
        place.set_xlim(low, high)
    sheet.supxlabel("score after unlearning with its 95% interval; | the base", fontsize=8)


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


def _draw_line(
    axis: Any, style: Style, curve: Curve, settings: Sequence[Aggregate], dodge: float
) -> None:
    """Means over seeds with 95% whiskers; step 0 is the unlearned model.

    Whiskers and not bands: they stay apart where many lines cross, and say nothing of step counts
    that were not measured.
    """
    found = {s.steps: curve.of(s) for s in settings}
    points = {steps: last for steps, (_, _, last) in found.items() if last is not None}
    begun = next((unlearned for _, unlearned, _ in found.values() if unlearned is not None), None)
    if points and 0 not in points and begun is not None:
        points[0] = Estimate(begun, begun, begun)
    steps = sorted(points)
    places = [step + dodge if step else 0 for step in steps]  # all lines begin at one model
    axis.vlines(
        places,
        [points[step].low for step in steps],
        [points[step].high for step in steps],
        color=style.colour,
        alpha=0.45,
        linewidth=1.4,
    )
    axis.plot(
        places,
        [points[step].value for step in steps],
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


def _dress(axis: Any) -> None:
    axis.tick_params(labelsize=8, color=_FAINT)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_FAINT)


def _share_scale(places: Any) -> None:
    """One scale for all panels: of shares 0 to 1, else as far as any goes."""
    low, high = _common([place.get_ylim() for row in places for place in row])
    for row in places:
        for i, place in enumerate(row):
            place.set_ylim(low, high)
            if i:
                place.tick_params(labelleft=False)


def _common(scales: Sequence[tuple[float, float]]) -> tuple[float, float]:
    low, high = min(scale[0] for scale in scales), max(scale[1] for scale in scales)
    return (-0.03, 1.05) if low > -0.1 and high < 1.1 else (low, high)


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
