"""`resurge list KIND NAME`: all that one plug-in says of itself."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.text import Text

from orchestrator.cli.show.screen import bold
from orchestrator.cli.show.tables import new_table
from orchestrator.config.checks import missing
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import MetricPlugin, Plugin, PluginKind, UnlearnerPlugin
from orchestrator.core.registry import PluginWarning, find, registry, unknown
from orchestrator.core.settings import Presets, Settings
from orchestrator.core.text import number, one_line

WIDEST = 100
"""Characters of a line of prose, however wide the console is."""


def show_plugin(kind: PluginKind, name: str, console: Console) -> None:
    """What it is, its settings, and its presets if it has some."""
    plugins = registry(kind)
    if name not in plugins:
        raise ResurgeError(unknown(kind, name))
    plugin = plugins[name]
    console.print(bold(name, f"  {kind}, version {plugin.version}"))
    _prose(plugin.__doc__, console)
    _facts(_facts_of(plugin), console)
    _show_settings(plugin.Settings, console)
    _show_presets(name, getattr(plugin.Settings, "PRESETS", {}), console)


def cost(plugin: type[UnlearnerPlugin]) -> str:
    """UNet passes with the defaults that ship."""
    if not (plugin.changes and plugin.is_method):
        return "none"
    passes = _passes(plugin)
    return "?" if passes is None else f"{passes:,}" if passes else "closed form"


def scored(plugin: type[MetricPlugin]) -> str:
    """What a metric looks at."""
    beside = " beside the base's" if plugin.reference else ""
    return f"{'models' if plugin.needs == 'pipeline' else plugin.needs}{beside}"


def span(plugin: type[MetricPlugin]) -> str:
    """The range of a metric's values."""
    low, high = ("" if end is None else f"{end:g}" for end in plugin.values)
    return f"{low or '-∞'} to {high or '∞'}"


def by_title(presets: Presets) -> Mapping[str, list[str]]:
    """The presets' names by whose their values are, published ones first."""
    titles = sorted({preset.title for preset in presets.values()}, key=lambda t: (t == "ours", t))
    return {title: [n for n, p in presets.items() if p.title == title] for title in titles}


def _facts_of(plugin: type[Plugin]) -> Iterator[tuple[str, str]]:
    if issubclass(plugin, UnlearnerPlugin):
        unit = " UNet passes over one latent, a backward pass counted as two, as it ships"
        price = cost(plugin)
        yield "paper", plugin.paper
        yield "cost", price + unit * price.replace(",", "").isdigit()
        yield "reads", ", ".join(_read_by(plugin))
        yield "works from", ", ".join(_materials(plugin))
        if plugin.changes and plugin.is_method:
            yield "several concepts jointly", _jointly(plugin)
            yield "golden numbers", _golden(plugin)
    if issubclass(plugin, MetricPlugin):
        yield "scores", scored(plugin)
        yield "range", f"{span(plugin)}; higher is {plugin.higher}"


def _jointly(plugin: type[UnlearnerPlugin]) -> str:
    return plugin.jointly or "yes" if plugin.joint else "no: one at a time"


def _golden(plugin: type[UnlearnerPlugin]) -> str:
    if not plugin.golden:
        return "none: no numbers of released code to compare with"
    return f"compared with what the released code computes: {plugin.golden}"


def _read_by(plugin: type[UnlearnerPlugin]) -> Iterator[str]:
    yield "prompts for the concept" if plugin.changes else "nothing"
    if "retained" in plugin.uses:
        yield "prompts for what is preserved"
    if "anchors" in plugin.uses:
        yield "the prompts with an anchor concept in its place"
    if "given anchors" in plugin.uses:
        yield "the same where a set of concepts names an anchor"


def _materials(plugin: type[UnlearnerPlugin]) -> list[str]:
    """Of the bundled base, and with the defaults that ship."""
    if missing(plugin.Settings, ()):
        return []
    base = find("base", "shapes")
    try:
        star = ConceptSet.of("star")
        needs = plugin(plugin.Settings()).needs(base(base.Settings()), star)  # type: ignore[arg-type]
    except Exception as error:
        _warn(plugin, "needs", error)
        return []
    return [f"{name} ({need.plugin.name})" for name, need in needs.items()]


def _passes(plugin: type[UnlearnerPlugin]) -> int | None:
    """None where there are no settings that ship, or a plug-in of the user's fails to tell."""
    if missing(plugin.Settings, ()):
        return None
    try:
        return plugin(plugin.Settings()).passes()
    except Exception as error:
        _warn(plugin, "passes", error)
        return None


def _warn(plugin: type[Plugin], what: str, error: Exception) -> None:
    text = f"`{what}` of unlearner {plugin.name!r} fails: {type(error).__name__}: {error}"
    warnings.warn(one_line(text, 300), PluginWarning, stacklevel=1)


def _prose(text: str | None, console: Console) -> None:
    """Paragraphs of a docstring, each below an empty line."""
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        console.print()
        console.print(" ".join(paragraph.split()), width=min(WIDEST, console.width))


def _facts(facts: Iterable[tuple[str, str]], console: Console) -> None:
    table = new_table()
    table.show_header = False
    for title, said in facts:
        if said:
            table.add_row(title, said)
    if table.row_count:
        console.print()
        console.print(table, width=min(WIDEST + 13, console.width))


def _show_settings(cls: type[Settings], console: Console) -> None:
    shown = {name: f for name, f in cls.model_fields.items() if name != "preset"}
    if not shown:
        console.print("\nno settings")
        return
    if "__doc__" in vars(cls):
        _prose(cls.__doc__, console)
    table = new_table("setting", "default", "")
    properties = cls.model_json_schema()["properties"]
    for name, info in shown.items():
        default = info.get_default(call_default_factory=True)
        value = "needed" if default is PydanticUndefined else written(default)
        told = Text.assemble(info.description or "", (f" ({_type(properties[name])})", "dim"))
        table.add_row(name, value, told)
    console.print()
    console.print(table)


def _show_presets(name: str, presets: Presets, console: Console) -> None:
    """Each with its values, whose they are, and where they are from."""
    if not presets:
        return
    first = next(iter(presets))
    over = f"  over the defaults: `unlearn: [{{{name}: {{preset: {first}}}}}]`"
    console.print(Text.assemble("\n", bold("presets", over)))
    table = new_table()
    table.show_header = False
    for title, preset in presets.items():
        values = ", ".join(f"{key}: {written(value)}" for key, value in preset.values.items())
        whose = f"\n{preset.title}{': ' if preset.source else ''}{preset.source}"
        table.add_row(title, Text.assemble(values, (whose, "dim")))
    console.print(table, width=min(WIDEST + 13, console.width))


def written(value: Any) -> str:
    """A value as a sweep file says it."""
    if isinstance(value, tuple | list | frozenset | set):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return one_line(value) if value and value[0].isalnum() else json.dumps(one_line(value))
    return number(value)


_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, from a setting's JSON Schema."""
    if "anyOf" in schema:
        return ", or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return " | ".join(written(one) for one in allowed)
    if schema.get("type") == "array":
        inner = schema.get("items") or {}
        return f"list of {_type(inner)}" if inner else "list"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    # A bound and its sign stay on one line.
    whole = "\N{NO-BREAK SPACE}".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in bounds)
    return " ".join([_TYPES.get(str(schema.get("type")), "any value"), whole]).rstrip()
