"""Pictures of a study: its history, what matters in it, and the goal over its settings.

Each function gives a PNG's bytes. search_page has the same to explore.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.core.text import number, shortened
from orchestrator.results.figures import COLOURS
from orchestrator.study.tried import Tried, best_so_far, counted, in_order
from orchestrator.study.tried import best as unbeaten
from orchestrator.study.worst_case import WorstCase
from orchestrator.sweep.space import Categorical, Dimension

CONTOUR_SETTINGS = 4
CELLS = 80
BANDWIDTH = 0.08
"""How far a trial's value reaches in a surface, as a share of the axis."""
PANELS_A_ROW = 3
PANEL_INCHES = (3.0, 2.5)
_INK, _FAINT, _GRID = "#333333", "#888888", "#e8e8e8"
_SEARCHED, _WORST, _PRUNED, _BROKEN = COLOURS[0], COLOURS[1], COLOURS[4], "#b0b0b0"
_SURFACE = "viridis"
_RING: Mapping[str, Any] = {
    "s": 70,
    "facecolors": "none",
    "edgecolors": _WORST,
    "linewidths": 1.8,
    "zorder": 3,
}


def drawings(case: WorstCase, shares: Mapping[str, float]) -> dict[str, Callable[[], bytes]]:
    """What there is to draw of a study, by file name.

    Args:
        shares: the importance of each setting.
    """
    settings, over, done = varied(case), in_order(case.trials), _done(case)
    is_measured = any(is_one(trial) for trial in over for *_, is_one in _kinds())
    wanted = {
        "history.png": (is_measured, lambda: history(case)),
        "importance.png": (bool(shares), lambda: importance(case, shares)),
        "slice.png": (bool(settings), lambda: slices(case)),
        "contour.png": (bool(_pairs(case, shares)), lambda: contours(case, shares)),
        "pareto_front.png": (len(case.goals) > 1 and bool(done), lambda: pareto_front(case)),
    }
    return {name: draw for name, (is_there, draw) in wanted.items() if is_there}


def history(case: WorstCase) -> bytes:
    """Every trial's value, the best so far, and what was confirmed of it."""
    trials = in_order(case.trials)
    sheet = _sheet(6.4, 3.6, f"{case.name}: {_goal(case)} by trial, and the best so far")
    axis = sheet.subplots()
    for label, colour, marker, chosen in _kinds():
        places = [i for i, trial in enumerate(trials, 1) if chosen(trial)]
        values = [_value(trials[i - 1]) for i in places]
        if places:
            axis.scatter(places, values, s=16, color=colour, marker=marker, label=label, zorder=2)
    best = [value for value in best_so_far(trials, case.goals) if value is not None]
    if best:
        first = len(trials) - len(best) + 1
        ends = [*range(first, len(trials) + 1), len(trials) + 0.5]
        style: dict[str, Any] = {"where": "post", "color": _SEARCHED, "linewidth": 1.6}
        axis.step(ends, [*best, best[-1]], **style, label="best so far")
    _draw_confirmed(axis, case, len(trials) + 1.5)
    axis.set_xlabel("trials that are over", fontsize=9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel(_goal(case), fontsize=9)
    _plain(axis)
    sheet.legend(loc="outside right center", frameon=False, fontsize=8)
    return _png(sheet)


def importance(case: WorstCase, shares: Mapping[str, float]) -> bytes:
    """How much each setting sets the best trials apart from the rest."""
    names = sorted(shares, key=lambda name: shares[name])
    height = 1.2 + 0.36 * len(names)
    sheet = _sheet(6.4, height, f"{case.name}: how much each setting matters for {_goal(case)}")
    axis = sheet.subplots()
    bars = axis.barh(names, [shares[name] for name in names], color=_SEARCHED, height=0.6)
    axis.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3, fontsize=8)
    axis.set_xlim(0, 1.08)
    axis.set_xlabel("importance (PED-ANOVA); all together are 1", fontsize=9)
    _plain(axis, grid="x")
    return _png(sheet)


def slices(case: WorstCase) -> bytes:
    """The goal over each setting by itself."""
    settings = varied(case)
    worst = case.worst
    sheet, axes = _panels(len(settings), f"{case.name}: {_goal(case)} over each setting")
    for dimension, axis in zip(settings, axes, strict=False):
        scale = _Scale(dimension)
        for label, colour, marker, chosen in _kinds():
            found = [t for t in _together(case, dimension, dimension) if chosen(t)]
            if found:
                places = [scale.place(t, spread=True) for t in found]
                values = [_value(t) for t in found]
                axis.scatter(places, values, 16, color=colour, marker=marker, label=label)
        if worst is not None and dimension.name in worst.tried.point:
            axis.scatter(
                [scale.place(worst.tried, spread=True)],
                [worst.searched],
                **_RING,
                label="the worst case, as searched",
            )
        scale.dress(axis, "x")
        _plain(axis)
        axis.sharey(axes[0])
    for axis in axes[::PANELS_A_ROW]:
        axis.set_ylabel(_goal(case), fontsize=8)
    _legend(sheet, axes[: len(settings)])
    return _png(sheet)


def contours(case: WorstCase, shares: Mapping[str, float]) -> bytes:
    """The goal over pairs of the settings that matter most."""
    pairs = _pairs(case, shares)
    ring = "; ring: the worst case" if case.worst else ""
    title = f"{case.name}: {_goal(case)} over pairs of settings, smoothed around the trials{ring}"
    sheet, axes = _panels(len(pairs), title)
    values = [_value(t) for t in _done(case)]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    shown: dict[str, Any] = {"vmin": low, "vmax": high, "cmap": _SURFACE}
    painted = None
    for (one, other), axis in zip(pairs, axes, strict=False):
        painted = _draw_pair(axis, case, _Scale(one), _Scale(other), shown)
    if painted is not None:
        bar = sheet.colorbar(painted, ax=list(axes), shrink=0.8, pad=0.02)
        bar.set_label(_goal(case), fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    return _png(sheet)


def pareto_front(case: WorstCase) -> bytes:
    """The first two goals, and the trials that no other beats."""
    sheet = _sheet(5.6, 3.8, f"{case.name}: the trials that no other beats")
    axis = sheet.subplots()
    front = unbeaten(case.trials, case.goals, len(case.trials))
    for label, colour, marker, chosen in _kinds():
        found = [t.values[:2] for t in _done(case) if chosen(t)]
        if found:
            x, y = zip(*found, strict=True)
            axis.scatter(x, y, s=16, color=colour, marker=marker, label=label)
    if front:
        x, y = zip(*sorted(t.values[:2] for t in front), strict=True)
        axis.plot(x, y, "-D", color=_WORST, lw=1.2, ms=5, label="Pareto front")
    axis.set_xlabel(_goal(case), fontsize=9)
    axis.set_ylabel(_goal(case, 1), fontsize=9)
    _plain(axis)
    sheet.legend(loc="outside right center", frameon=False, fontsize=8)
    return _png(sheet)


def varied(case: WorstCase) -> list[Dimension]:
    """The settings of which the trials with a value tried more than one."""
    seen: dict[str, set[str]] = {}
    for trial in _done(case):
        for name, value in trial.point.items():
            seen.setdefault(name, set()).add(repr(value))
    return [d for d in case.space.dimensions if len(seen.get(d.name, ())) > 1]


def _pairs(case: WorstCase, shares: Mapping[str, float]) -> list[tuple[Dimension, Dimension]]:
    """Those of the settings that matter most, if some trial has both."""
    settings = sorted(varied(case), key=lambda d: -shares.get(d.name, 0.0))[:CONTOUR_SETTINGS]
    return [pair for pair in itertools.combinations(settings, 2) if _together(case, *pair)]


def _done(case: WorstCase) -> list[Tried]:
    """The trials that ran to their end."""
    return [trial for trial in counted(case.trials) if trial.state == "done"]


def _together(case: WorstCase, one: Dimension, other: Dimension) -> list[Tried]:
    """Those of them that have both settings."""
    return [trial for trial in _done(case) if {one.name, other.name} <= trial.point.keys()]


def _kinds() -> Iterator[tuple[str, str, str, Callable[[Tried], bool]]]:
    """What is told apart: a label, a colour, a marker, and which trials it is."""
    yield "run to its end", _SEARCHED, "o", lambda t: t.state == "done" and t.is_feasible
    yield "a bound broken", _BROKEN, "o", lambda t: t.state == "done" and not t.is_feasible
    yield "pruned, at fewer steps", _PRUNED, "x", lambda t: t.state == "pruned" and bool(t.curve)


def _value(trial: Tried) -> float:
    """The first goal's value; of a pruned trial its last one."""
    return trial.values[0] if trial.values else trial.curve[max(trial.curve)]


def _draw_confirmed(axis: Any, case: WorstCase, at: float) -> None:
    worst = case.worst
    if worst is None or worst.goal is None:
        return
    goal = worst.goal
    is_known = math.isfinite(goal.high - goal.low)
    ends = [[goal.value - goal.low], [goal.high - goal.value]] if is_known else None
    style: dict[str, Any] = {"color": _WORST, "marker": "D", "ms": 5, "capsize": 3, "ls": "none"}
    low, high = min(goal.value, axis.get_ylim()[0]), max(goal.value, axis.get_ylim()[1])
    axis.errorbar([at], [goal.value], yerr=ends, **style, label="confirmed, with 95% interval")
    # An interval of few seeds may be so wide that nothing else could be told apart.
    room = high - low
    axis.set_ylim(max(axis.get_ylim()[0], low - room), min(axis.get_ylim()[1], high + room))


def _draw_pair(axis: Any, case: WorstCase, x: _Scale, y: _Scale, shown: Mapping[str, Any]) -> Any:
    found = _together(case, x.dimension, y.dimension)
    values = [_value(t) for t in found]
    _draw_surface(axis, found, values, x, y, shown)
    painted = axis.scatter(
        [x.place(t, spread=True) for t in found],
        [y.place(t, spread=True) for t in found],
        c=values,
        s=18,
        edgecolors="white",
        linewidths=0.6,
        zorder=2,
        **shown,
    )
    if case.worst is not None and {x.name, y.name} <= case.worst.tried.point.keys():
        worst = case.worst.tried
        axis.scatter([x.place(worst, spread=True)], [y.place(worst, spread=True)], **_RING)
    x.dress(axis, "x")
    y.dress(axis, "y")
    _plain(axis, grid=None)
    return painted


def _draw_surface(
    axis: Any,
    found: Sequence[Tried],
    values: Sequence[float],
    x: _Scale,
    y: _Scale,
    shown: Mapping[str, Any],
) -> None:
    """Means weighted by nearness, the fainter the farther the next trial is."""
    import matplotlib

    near = y.nearness(found)[:, None, :] * x.nearness(found)[None, :, :]
    total = near.sum(axis=2)
    means = (near * np.array(values)).sum(axis=2) / np.maximum(total, 1e-300)
    colours = matplotlib.colormaps[shown["cmap"]](
        (means - shown["vmin"]) / (shown["vmax"] - shown["vmin"])
    )
    colours[..., 3] = 0.6 * near.max(axis=2)
    axis.pcolormesh(x.edges, y.edges, colours, zorder=0, linewidth=0, rasterized=True)


class _Scale:
    """Where a setting's values are on an axis."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        self.name = dimension.name

    def place(self, trial: Tried, spread: bool = False) -> float:
        """A trial's place; those of one listed value may be spread so that all are seen."""
        value = trial.point[self.name]
        if not isinstance(self.dimension, Categorical):
            return float(value)
        # The golden ratio spreads any number of trials evenly.
        off = (trial.number * 0.618034 % 1 - 0.5) * 0.5 if spread else 0.0
        return self.dimension.values.index(value) + off

    @property
    def edges(self) -> Any:
        """The borders of the cells of a surface: shape (cells + 1,)."""
        dimension = self.dimension
        if isinstance(dimension, Categorical):
            return np.arange(dimension.size + 1) - 0.5
        shares = np.linspace(0, 1, CELLS + 1)
        low, high = dimension.low, dimension.high
        return low * (high / low) ** shares if dimension.log else low + (high - low) * shares

    def nearness(self, trials: Sequence[Tried]) -> Any:
        """How near each trial is to each cell, from 0 to 1: shape (cells, trials)."""
        dimension = self.dimension
        if isinstance(dimension, Categorical):
            at = np.array([self.place(trial) for trial in trials])
            return (np.arange(dimension.size)[:, None] == at).astype(float)
        shares = np.array([dimension.unit(trial.point[self.name]) for trial in trials])
        middles = (np.arange(CELLS) + 0.5) / CELLS
        return np.exp(-(((middles[:, None] - shares) / BANDWIDTH) ** 2) / 2)

    def dress(self, axis: Any, side: str) -> None:
        """The axis' name, its ends, and its ticks."""
        which = getattr(axis, f"{side}axis")
        getattr(axis, f"set_{side}label")(self.name, fontsize=8)
        dimension = self.dimension
        if isinstance(dimension, Categorical):
            which.set_ticks(
                range(dimension.size),
                [shortened(number(v), 14).replace("$", r"\$") for v in dimension.labels],
            )
            getattr(axis, f"set_{side}lim")(-0.5, dimension.size - 0.5)
            return
        low, high = dimension.low, dimension.high
        if dimension.log:
            getattr(axis, f"set_{side}scale")("log")
            edge = (high / low) ** 0.04
            getattr(axis, f"set_{side}lim")(low / edge, high * edge)
        else:
            edge = (high - low) * 0.04
            getattr(axis, f"set_{side}lim")(low - edge, high + edge)


def _goal(case: WorstCase, index: int = 0) -> str:
    """'retained accuracy': a number as people say it; a metric's or a setting's as it is."""
    name = case.goals[index].name
    return name if "." in name else name.replace("_", " ")


def _panels(count: int, title: str) -> tuple[Any, Any]:
    columns = min(count, PANELS_A_ROW)
    rows = math.ceil(count / PANELS_A_ROW)
    width, height = PANEL_INCHES
    sheet = _sheet(max(5.0, width * columns + 0.8), height * rows + 0.8, title)
    axes = sheet.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return sheet, axes


def _legend(sheet: Any, axes: Sequence[Any]) -> None:
    """One for all panels."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    sheet.legend(found.values(), found.keys(), ncols=len(found) or 1, **style)


def _sheet(width: float, height: float, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(sheet)
    sheet.suptitle(
        title.replace("$", r"\$"), fontsize=10, fontweight="bold", x=0.01, ha="left", color=_INK
    )
    return sheet


def _plain(axis: Any, grid: str | None = "y") -> None:
    axis.tick_params(labelsize=7.5, color=_FAINT)
    if grid:
        axis.grid(axis=grid, color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_FAINT)


def _png(sheet: Any) -> bytes:
    stream = io.BytesIO()
    sheet.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
