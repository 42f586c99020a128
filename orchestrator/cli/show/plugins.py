"""`resurge list`: plug-ins with what they do and which settings they take."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from orchestrator.cli.show.plugin import by_title, cost, scored, show_plugin, span
from orchestrator.cli.show.tables import new_table
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import MetricPlugin, PluginKind, UnlearnerPlugin
from orchestrator.core.registry import registry

KINDS: Mapping[str, PluginKind] = {
    "bases": "base",
    "unlearners": "unlearner",
    "datasets": "dataset",
    "updates": "update",
    "evaluations": "evaluation",
    "metrics": "metric",
    "executors": "executor",
}
ONE = "More of one: `resurge list {kind} NAME`."


def show_plugins(kind: str | None, name: str | None, console: Console) -> None:
    """Plug-ins by kind, with the first line of what they say of themselves; or all of one."""
    if kind is not None and kind not in KINDS:
        raise ResurgeError(f"unknown kind {kind!r}{suggest(kind, [*KINDS, 'sweeps'])}")
    if kind is not None and name is not None:
        show_plugin(KINDS[kind], name, console)
        return
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
    console.print(ONE.format(kind=kind or "KIND"))


def _show_metrics(console: Console) -> None:
    """Each metric with what it scores, the range of its values, and what more of it means."""
    table = new_table("metric", "", "scores", "range", "higher is")
    for name, plugin in registry("metric").items():
        if issubclass(plugin, MetricPlugin):
            table.add_row(name, plugin.summary(), scored(plugin), span(plugin), plugin.higher)
    console.print(table)
    console.print(ONE.format(kind="metrics"))


def _show_unlearners(console: Console) -> None:
    """Each method with its paper, its presets and whose they are, and what it costs as it ships."""
    table = new_table("unlearner", "")
    for name, plugin in registry("unlearner").items():
        if issubclass(plugin, UnlearnerPlugin):
            price = cost(plugin)
            passes = f"{price} UNet passes" if price[0].isdigit() else price
            below = [" · ".join(part for part in (plugin.paper, passes) if part)]
            presets = by_title(getattr(plugin.Settings, "PRESETS", {}))
            below += [f"{title}: {', '.join(names)}" for title, names in presets.items()]
            table.add_row(
                name, Text.assemble(plugin.summary(), *((f"\n{line}", "dim") for line in below))
            )
    console.print(table)
    console.print(
        "UNet passes: over one latent, a backward pass counted as two, with the defaults that ship "
        "(for the bundled shapes model); the materials a method works from are shared and not "
        "counted. A preset: `unlearn: [{esd: {preset: sd-object}}]`; its values are those of the "
        "method's published code (released) or paper, or ours. " + ONE.format(kind="unlearners")
    )
