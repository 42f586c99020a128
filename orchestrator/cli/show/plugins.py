"""`resurge list`: plug-ins with what they do and which settings they take."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from rich.console import Console

from orchestrator.cli.show.tables import new_table
from orchestrator.config.checks import missing
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import MetricPlugin, PluginKind, UnlearnerPlugin
from orchestrator.core.registry import PluginWarning, registry
from orchestrator.core.text import one_line

KINDS: Mapping[str, PluginKind] = {
    "bases": "base",
    "unlearners": "unlearner",
    "datasets": "dataset",
    "metrics": "metric",
    "executors": "executor",
}


def show_plugins(kind: str | None, console: Console) -> None:
    """Plug-ins by kind, with the first line of what they say of themselves."""
    if kind is not None and kind not in KINDS:
        raise ResurgeError(f"unknown kind {kind!r}{suggest(kind, [*KINDS, 'sweeps'])}")
    # These two have more to say of themselves than a line.
    if kind == "metrics":
        _show_metrics(console)
        return
    if kind == "unlearners":
        _show_unlearners(console)
        return
    for title in KINDS if kind is None else [kind]:
        table = new_table(title, "")
        for name, plugin in registry(KINDS[title]).items():
            table.add_row(f"  {name}", plugin.summary())
        console.print(table)


def _show_metrics(console: Console) -> None:
    """Each metric with what it scores, the range of its values, and what more of it means."""
    table = new_table("metric", "", "scores", "range", "higher is")
    for name, plugin in registry("metric").items():
        if issubclass(plugin, MetricPlugin):
            low, high = ("" if end is None else f"{end:g}" for end in plugin.values)
            beside = " beside the base's" if plugin.reference else ""
            scored = f"{'models' if plugin.needs == 'pipeline' else plugin.needs}{beside}"
            span = f"{low or '-∞'} to {high or '∞'}"
            table.add_row(name, plugin.summary(), scored, span, plugin.higher)
    console.print(table)


def _show_unlearners(console: Console) -> None:
    """Each method with its paper, its presets, and what it costs as it ships."""
    table = new_table("unlearner", "", "paper", "presets", right=["UNet passes"])
    for name, plugin in registry("unlearner").items():
        if issubclass(plugin, UnlearnerPlugin):
            passes = _passes(plugin)
            presets = ", ".join(getattr(plugin.Settings, "PRESETS", ()))
            free = "closed form" if plugin.changes else "none"
            cost = "?" if passes is None else f"{passes:,}" if passes else free
            table.add_row(name, plugin.summary(), plugin.paper, presets, cost)
    console.print(table)
    console.print(
        "UNet passes: over one latent, a backward pass counted as two, with the defaults that ship "
        "(for the bundled shapes model); the materials a method works from are shared and not "
        "counted. A preset: `unlearn: [{esd: {preset: sd-object}}]`."
    )


def _passes(plugin: type[UnlearnerPlugin]) -> int | None:
    """None where there are no settings that ship, or a plug-in of the user's fails to tell."""
    if missing(plugin.Settings, ()):
        return None
    try:
        return plugin(plugin.Settings()).passes()
    except Exception as error:
        text = f"`passes` of unlearner {plugin.name!r} fails: {type(error).__name__}: {error}"
        warnings.warn(one_line(text, 300), PluginWarning, stacklevel=1)
        return None
