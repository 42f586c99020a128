"""A study's interactive plots as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from orchestrator.results.figures import COLOURS

HEADINGS: Mapping[str, tuple[str, str]] = {
    "history": (
        "By trial",
        "Every trial that ran to its end, by its number, and the best so far. Grey: a bound is "
        "broken.",
    ),
    "pareto_front": ("The goals against each other", "Red: the trials that no other beats."),
    "importance": (
        "What each setting matters",
        "How much it sets the best trials apart from the rest (PED-ANOVA); all together are 1.",
    ),
    "slice": ("Over each setting", "The darker, the later the trial. Grey: a bound is broken."),
    "contour": (
        "Over pairs of settings",
        "Interpolated between the trials; far from every dot it says nothing.",
    ),
}

LABELS: Mapping[str, str] = {
    "Best Value": "best so far",
    "Hyperparameter": "",
    "Hyperparameter Importance": "importance",
    "Best Trial": "unbeaten",
    "Infeasible Trial": "a bound is broken",
    "Trial": "trial",
}
"""Optuna's words and ours."""

HEIGHT_PX, PAIR_HEIGHT_PX, PANEL_WIDTH_PX = 420, 190, 220
PANELS_IN_SIGHT = 5
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; max-width: 1180px; margin: 2em auto;
       padding: 0 1.5em; }
h1 { font-size: 1.5em; margin-bottom: .2em; }
h2 { font-size: 1.15em; margin: 2em 0 0; }
p { margin: .2em 0; }
div.plot { overflow-x: auto; }
p.note { color: #767676; }
"""


def page(title: str, lines: Iterable[str], figures: Mapping[str, Any]) -> str:
    """HTML with plotly.js in it.

    Args:
        title: the heading.
        lines: paragraphs below it.
        figures: plotly figures by their names in HEADINGS.
    """
    from plotly.offline import get_plotlyjs

    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in lines),
        f"<script>{get_plotlyjs()}</script>",
    ]
    for name, (heading, note) in HEADINGS.items():
        if name in figures:
            parts.append(f'<h2>{escape(heading)}</h2><p class="note">{escape(note)}</p>')
            parts.append(_plot(name, figures[name]))
    return "\n".join([*parts, "</body></html>"])


def _plot(name: str, figure: Any) -> str:
    """The plot below its own heading, in our words and colours, every label in sight."""
    margins = {"t": 30, "l": 80, "r": 30, "b": 60}
    figure.update_layout(title=None, template="plotly_white", colorway=COLOURS, margin=margins)
    # The page's width unless there are many panels; a row each for a contour's settings.
    panels = sum(1 for _ in figure.select_xaxes())
    rows, columns = (round(panels**0.5),) * 2 if name == "contour" else (1, panels)
    figure.update_layout(
        width=PANEL_WIDTH_PX * columns if columns > PANELS_IN_SIGHT else None,
        height=max(HEIGHT_PX, PAIR_HEIGHT_PX * rows),
    )
    for axes in (figure.select_xaxes(), figure.select_yaxes()):
        for axis in axes:
            axis.update(title={"text": _ours(axis.title.text), "standoff": 8}, automargin=True)
            axis.update(categoryarray=_unquoted(axis.categoryarray), exponentformat="e")
    for trace in figure.data:
        trace.update(name=_ours(trace.name), x=_unquoted(trace.x))
        if "marker" in trace and "colorbar" in trace.marker:
            trace.marker.colorbar.title.text = _ours(trace.marker.colorbar.title.text)
    figure.update_traces(marker_color=COLOURS[0], selector={"type": "bar"})
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displaylogo": False, "responsive": True},
    )
    return f'<div class="plot">{html}</div>'


def _ours(text: str | None) -> str | None:
    return LABELS.get(text, text) if text else text


def _unquoted(values: Any) -> Any:
    """Optuna's slices put listed values into quotes."""
    if values is None:
        return None
    return [value.strip("'") if isinstance(value, str) else value for value in values]
