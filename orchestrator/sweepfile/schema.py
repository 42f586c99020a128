"""The JSON Schema of the sweep file, so that editors complete it.

It is made from the plug-ins that are installed. The sweep reader is stricter: what combines badly
is not in a schema.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from orchestrator.core.chosen import chosen_kind
from orchestrator.core.plugin import PluginKind
from orchestrator.core.registry import find, registry
from orchestrator.core.settings import Settings
from orchestrator.sweep.resources import Resources
from orchestrator.sweep.search import AggregateHow, Confirm, DefendSettings, SearchSettings
from orchestrator.sweep.sweep import PUBLISHED, Keep
from orchestrator.sweep.trial import UnlearnSettings
from orchestrator.sweepfile.load import KEYS, REQUIRED

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string", "minLength": 1}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OUTER = ("title", "description", "default")


def json_schema() -> Schema:
    """JSON Schema (2020-12) of a sweep file, with every installed plug-in's settings."""
    definitions: Schema = {}
    properties = _top(definitions)
    return {
        "$schema": _DIALECT,
        "title": "Resurge sweep",
        **_mapping({key: properties[key] for key in KEYS}, REQUIRED),
        "$defs": dict(sorted(definitions.items())),
    }


def _top(definitions: Schema) -> Schema:
    base = _choice("base", definitions, are_axes=False)
    points = _list_of({"type": "object", "minProperties": 1})
    seed: Schema = {"type": "integer", "minimum": 0}
    seeds: Schema = {"anyOf": [{"type": "integer", "minimum": 1}, _list_of(seed, unique=True)]}
    resources = _settings("resources", "", Resources, definitions, are_axes=False)
    del resources["properties"]["executor_settings"]
    resources["properties"]["executor"] = {
        "description": "what starts the work",
        **_choice("executor", definitions, are_axes=False),
    }
    described: dict[str, tuple[str, Schema]] = {
        "name": (
            "names the sweep in the store and in MLflow",
            {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,79}$"},
        ),
        "base": (
            "a plug-in, or a diffusers folder or repository id",
            {"anyOf": [*base["anyOf"], _TEXT]},
        ),
        "concept": (
            "what to erase, each value on its own: a concept, a list of concepts that are erased "
            "jointly, or a set with a name",
            _one_or_more({"anyOf": [_TEXT, _list_of(_TEXT, unique=True), _set()]}),
        ),
        "edits": ("what is done to the model, in order", _edits(definitions)),
        "evaluate": ("how a model is judged", _evaluate(definitions)),
        "seeds": ("how many seeds, or which", seeds),
        "keep": ("whose weights stay in the store", _one_or_more({"enum": [*get_args(Keep)]}, 0)),
        "include": ("points to add; flat axis names and values", points),
        "exclude": ("points to leave out; flat axis names and values", points),
        "zip": ("axes that move together", _list_of(_list_of(_TEXT, 2))),
        "search": ("seek the worst case in a space that replaces the axes", _search()),
        "reference": (
            "published numbers, which results show beside this sweep's own",
            _or_null(_reference()),
        ),
        "resources": ("what the sweep runs on", resources),
        "store": ("where results live: a folder or a URI", _or_null(_TEXT)),
        "mlflow": ("the MLflow tracking URI", _or_null(_TEXT)),
    }
    return {name: {"description": about, **schema} for name, (about, schema) in described.items()}


def _with_own(unlearner: Schema, definitions: Schema) -> list[Schema]:
    """An unlearning that is told more than its method, by the method's name or under `method`."""
    part: Schema = {"anyOf": [_TEXT, _list_of(_TEXT, unique=True), _set()]}
    concepts = {"description": "what this edit erases, of the sweep's concept", **part}
    concepts["anyOf"] = [*part["anyOf"], _list_of(part)]
    order = _settings("edit", "unlearn", UnlearnSettings, definitions, are_axes=True)["properties"]
    own = {"concepts": concepts, **order}
    choices: list[Schema] = unlearner["anyOf"][0]["anyOf"]
    named = {name: one for choice in choices for name, one in choice.get("properties", {}).items()}
    beside = {**_mapping({**named, **own}), "anyOf": [{"required": [name]} for name in own]}
    return [_mapping({"method": unlearner, **own}, ["method"]), beside]


def _set() -> Schema:
    own = {"concepts": _list_of(_TEXT, unique=True), "file": _TEXT}
    anchors = {"type": "object", "additionalProperties": _TEXT, "minProperties": 1}
    made = _mapping({"name": _TEXT, **own, "anchors": anchors}, ["name"])
    return {**made, "oneOf": [{"required": [name]} for name in own]}


def _edits(definitions: Schema) -> Schema:
    unlearner = _one_or_more(_choice("unlearner", definitions, are_axes=True))
    dataset = _one_or_more(_choice("dataset", definitions, are_axes=True))
    recipe = find("recipe", "finetune")
    settings = _settings("recipe", "finetune", recipe.Settings, definitions, are_axes=True)
    dataset["description"] = "the data sets to fine-tune on"
    # A data set that a search chooses need not be named; the reader asks for any other.
    finetune = _mapping({"dataset": dataset, **settings["properties"]})
    updates = {"anyOf": [_choice("update", definitions, are_axes=True), *_short_updates()]}
    merge = {"description": "add a change that was made elsewhere", **_one_or_more(updates)}
    unlearn = {"anyOf": [*unlearner["anyOf"], *_with_own(unlearner, definitions)]}
    edit = {
        "anyOf": [
            _mapping({"unlearn": {"description": "erase the concept", **unlearn}}, ["unlearn"]),
            _mapping({"finetune": {"description": recipe.summary(), **finetune}}, ["finetune"]),
            _mapping({"merge": merge}, ["merge"]),
        ]
    }
    return _list_of(edit)


def _short_updates() -> list[Schema]:
    """`{lora: FILE, scale: …}`: an update's source beside its other settings."""
    found = []
    for name, plugin in registry("update").items():
        own = _settings("update", name, plugin.Settings, {}, are_axes=True)
        required = [name, *(key for key in own.get("required", ()) if key != "source")]
        properties = {key: value for key, value in own["properties"].items() if key != "source"}
        source = own["properties"].get("source")
        if source is not None:
            found.append(_mapping({name: source, **properties}, required))
    return found


def _evaluate(definitions: Schema) -> Schema:
    recipe = find("recipe", "sample").Settings
    sample = _settings("recipe", "sample", recipe, definitions, are_axes=False)
    own: Schema = {
        "metrics": _one_or_more(_choice("metric", definitions, are_axes=False)),
        "set": _or_null(_one_or_more(_choice("evaluation", definitions, are_axes=False))),
        "retain": _or_null(_one_or_more(_TEXT, 0)),
        "prompts": _or_null(_one_or_more({"type": "string", "pattern": r"\{concept\}"})),
        "controls": {"type": "boolean", "default": True},
        "pictures": {"enum": ["all", "none"], "default": "all"},
    }
    abouts = {
        "metrics": "the metrics to compute",
        "set": "what models are asked; of several sets the rows are pooled; null: the base's own",
        "retain": "concepts that should survive; null: the base's own",
        "prompts": "templates that contain {concept}; null: the base's own",
        "controls": "also run the controls",
        "pictures": "none: draw no pictures, and compare weights and models at work only",
    }
    own = {name: {"description": abouts[name], **schema} for name, schema in own.items()}
    return _mapping({**own, **sample["properties"]}, ["metrics"])


def _reference() -> Schema:
    numbers: Schema = {name: {"type": "number"} for name in PUBLISHED}
    rows = _list_of({"type": "object", "properties": numbers, "minProperties": 1})
    return _mapping({"source": _TEXT, "rows": rows}, ["source", "rows"])


def _search() -> Schema:
    """The block's own keys; which names a space may have hangs on the sweep."""
    settings = SearchSettings.model_json_schema()["properties"]
    confirm = Confirm.model_json_schema()["properties"]
    names = _one_or_more(_TEXT)
    bounds: Schema = {
        "description": "bounds that the worst case keeps: '>= 0.8', '>= 90% of base'; of a "
        "list each has a worst case",
        "type": "object",
        "additionalProperties": _one_or_more({"type": "string", "pattern": r"^\s*(>=|<=)"}),
    }
    space: Schema = {
        "description": "flat names of settings; lists, or {log|int|float: [low, high]}",
        "type": "object",
        "minProperties": 1,
    }
    own: Schema = {
        "maximize": {"description": "numbers of which more is sought", **names},
        "minimize": {"description": "numbers of which less is sought", **names},
        "subject_to": bounds,
        "for_each": {"description": "axes with a worst case a value", **names},
        "aggregate": {
            "description": "one worst case over all values of axes: those of for_each, or its own",
            "anyOf": [
                {"enum": [*get_args(AggregateHow)]},
                {**_mapping({how: names for how in get_args(AggregateHow)}), "minProperties": 1},
            ],
        },
        "space": space,
        "defend": {
            "description": "seek the unlearner's settings with the least worst case",
            **_mapping(
                {
                    "space": space,
                    "subject_to": bounds,
                    **DefendSettings.model_json_schema()["properties"],
                },
                ["space"],
            ),
        },
        "confirm": {"description": "try the best again on fresh seeds", **_mapping(confirm)},
    }
    return _mapping({**own, **settings}, ["space"])


def _choice(kind: PluginKind, definitions: Schema, are_axes: bool) -> Schema:
    """A plug-in's name, or its name with settings."""
    options: list[Schema] = []
    for name, plugin in registry(kind).items():
        settings = _settings(kind, name, plugin.Settings, definitions, are_axes)
        if not settings.get("required"):
            options.append({"const": name, "description": plugin.summary()})
        value = settings if settings.get("required") else _or_null(settings)
        options.append(_mapping({name: {"description": plugin.summary(), **value}}, [name]))
    return {"anyOf": options}


def _settings(
    kind: str, name: str, cls: type[Settings], definitions: Schema, are_axes: bool
) -> Schema:
    """A settings class; with `are_axes` each field takes one value or a list of values."""
    schema = cls.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    for model, definition in schema.pop("$defs", {}).items():
        definitions[f"{kind}.{name}.{model}"] = definition
    properties = schema.get("properties", {})
    for field, one in properties.items():
        if of := chosen_kind(cls, field):
            # A definition, because the plug-in may hold one in turn.
            choice = f"{of}.choice"
            if choice not in definitions:
                definitions[choice] = {}
                definitions[choice] = _choice(of, definitions, are_axes=False)
            one["$ref"] = f"#/$defs/{choice}"
        if are_axes:
            outer = {key: one[key] for key in _OUTER if key in one}
            inner = {key: value for key, value in one.items() if key not in _OUTER}
            properties[field] = {**outer, "anyOf": [inner, _list_of(inner, unique=True)]}
    return _mapping(properties, schema.get("required", ()))


def _mapping(properties: Schema, required: Iterable[str] = ()) -> Schema:
    found: Schema = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    names = list(required)
    return found | {"required": names} if names else found


def _list_of(items: Schema, length: int = 1, unique: bool = False) -> Schema:
    found: Schema = {"type": "array", "items": items, "minItems": length}
    return found | {"uniqueItems": True} if unique else found


def _one_or_more(schema: Schema, length: int = 1) -> Schema:
    return {"anyOf": [schema, _list_of(schema, length, unique=True)]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
