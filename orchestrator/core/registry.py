"""Which plug-ins there are: ours, installed ones, and those of a folder.

A file that cannot be used is left out, with a warning that says why: only who asks for what it
would have provided needs to mend it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import cast

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import as_list, suggest
from orchestrator.core.places import user_path, variable
from orchestrator.core.plugin import Plugin, PluginKind
from orchestrator.core.settings import Settings
from orchestrator.core.text import one_line

HOMES: Mapping[PluginKind, str] = {
    "base": "workers.bases",
    "unlearner": "workers.unlearners",
    "material": "workers.materials",
    "dataset": "workers.datasets",
    "update": "workers.updates",
    "evaluation": "workers.evaluations",
    "metric": "workers.metrics",
    "recipe": "workers.recipes",
    "executor": "orchestrator.executors",
}
INTERFACES: Mapping[PluginKind, tuple[str, str]] = {
    "base": ("workers.interfaces.base", "Base"),
    "unlearner": ("workers.interfaces.unlearner", "Unlearner"),
    "material": ("workers.interfaces.material", "Material"),
    "dataset": ("workers.interfaces.dataset", "Dataset"),
    "update": ("workers.interfaces.update", "Update"),
    "evaluation": ("workers.interfaces.evaluation", "Evaluation"),
    "metric": ("workers.interfaces.metric", "Metric"),
    "executor": ("orchestrator.executors.base", "Executor"),
}
"""What a plug-in of one's own subclasses: the module and the class."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class PluginWarning(UserWarning):
    """A plug-in that is left out, and why."""


@dataclass(frozen=True)
class LeftOut:
    """A file, or an installed plug-in, that cannot be used; `names` are what it would provide."""

    where: str
    why: str
    names: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.where} cannot be used: {self.why}"


@dataclass(frozen=True)
class _Outside:
    """The modules that are not ours, and what is wrong with the others."""

    modules: tuple[ModuleType, ...]
    left_out: tuple[LeftOut, ...]


@cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    """Installed plug-ins; finding them reads every distribution's metadata."""
    return tuple(importlib.metadata.entry_points(group="resurge.plugins"))


@cache
def _outside(folder: str | None) -> _Outside:
    """Modules from entry points and from the folder that RESURGE_PLUGINS names."""
    modules: list[ModuleType] = []
    left_out: list[LeftOut] = []
    for entry in _entry_points():
        try:
            loaded = entry.load()
            is_module = isinstance(loaded, ModuleType)
            modules.append(loaded if is_module else sys.modules[loaded.__module__])
        except (Exception, SystemExit) as error:
            where = f"the installed plug-in {entry.name!r} ({entry.value})"
            left_out.append(LeftOut(where, _reason(error, None), frozenset({entry.name})))
    if folder is not None:
        root = user_path(folder, "RESURGE_PLUGINS")
        if not root.is_dir():
            raise ResurgeError(f"RESURGE_PLUGINS must be a folder but is {folder!r}")
        for path in sorted(root.glob("*.py")):
            try:
                modules.append(_import_file(path))
            except (Exception, SystemExit) as error:
                left_out.append(LeftOut(str(path), _reason(error, path), _names_in(path)))
    for one in left_out:
        warnings.warn(str(one), PluginWarning, stacklevel=1)
    return _Outside(tuple(modules), tuple(left_out))


def _import_file(path: Path) -> ModuleType:
    name = f"resurge_plugins.{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResurgeError("it is no Python file that can be loaded")
    module = importlib.util.module_from_spec(spec)
    # Its functions can then be pickled: the code that an executor sends to its workers, say.
    sys.modules.setdefault("resurge_plugins", ModuleType("resurge_plugins"))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reason(error: BaseException, path: Path | None) -> str:
    """'line 3: NameError: name 'Unlearner' is not defined'."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    if line is None:
        inside = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = inside[-1].lineno if inside else None
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, SystemExit):
        said = f"it ends the program when it is imported ({error.code})"
    what = ": ".join(part for part in (type(error).__name__, said) if part)
    return one_line(f"line {line}: {what}" if line else what, 300)


def _names_in(path: Path) -> frozenset[str]:
    """What a file that cannot be loaded would call its plug-ins, as far as it can be read."""
    try:
        text = path.read_text("utf-8")
        found = [
            statement.value.value
            for one in ast.walk(ast.parse(text))
            if isinstance(one, ast.ClassDef)
            for statement in one.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
            if any(isinstance(t, ast.Name) and t.id == "name" for t in statement.targets)
        ]
    except (SyntaxError, ValueError):
        text = path.read_bytes().decode("utf-8", "replace")
        found = re.findall(r"""(?m)^\s+name\s*=\s*["']([^"'\n]+)["']""", text)
    except OSError:
        return frozenset()
    return frozenset(map(str, found))


@dataclass(frozen=True)
class _Registry:
    """The plug-ins of a kind by name; of the other names, why they cannot be used."""

    plugins: Mapping[str, type[Plugin]]
    refused: Mapping[str, str]


@cache
def _registry(kind: PluginKind, folder: str | None) -> _Registry:
    home = importlib.import_module(HOMES[kind])
    # A home is a package, or one module with several plug-ins.
    files = [info.name for info in pkgutil.iter_modules(getattr(home, "__path__", []))]
    ours = [home, *(importlib.import_module(f"{HOMES[kind]}.{name}") for name in files)]
    found: dict[str, type[Plugin]] = {}
    for module in ours:
        found |= {cls.name: cls for cls in _classes(module, kind) if "name" in vars(cls)}
    refused: dict[str, str] = {}
    for module in _outside(folder).modules:
        for cls in _classes(module, kind):
            name = str(vars(cls).get("name", cls.__name__))
            why = _why_unfit(cls, kind)
            other = found.setdefault(name, cls) if why is None else cls
            if other is not cls:
                where = f"{_file(other)} and {_file(cls)}"
                why = f"two plug-ins of kind {kind} are called {name!r}: {where}; rename one"
                refused[name] = why
            elif why is not None:
                why = f"class {cls.__name__} of {_file(cls)} {why}"
                refused.setdefault(name, why)
            if why is not None:
                warnings.warn(f"left out: {why}", PluginWarning, stacklevel=1)
    sound = {name: cls for name, cls in sorted(found.items()) if name not in refused}
    return _Registry(sound, refused)


def _classes(module: ModuleType, kind: PluginKind) -> Iterator[type[Plugin]]:
    """The plug-ins of a kind that a module defines, sound or not; not what they share."""
    own = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Plugin)]
    own = [cls for cls in dict.fromkeys(own) if cls.__module__ == module.__name__]
    for cls in own:
        is_shared = inspect.isabstract(cls) and "name" not in vars(cls)
        is_base = any(other is not cls and issubclass(other, cls) for other in own)
        is_named = "name" in vars(cls)
        if getattr(cls, "kind", None) == kind and not is_shared and (is_named or not is_base):
            yield cls


def _why_unfit(cls: type[Plugin], kind: PluginKind) -> str | None:
    """What is wrong with a plug-in's class, before anybody makes one."""
    module, wanted = INTERFACES.get(kind, (Plugin.__module__, Plugin.__name__))
    if not issubclass(cls, getattr(importlib.import_module(module), wanted)):
        return f"must subclass {wanted} (from {module} import {wanted})"
    name, version = vars(cls).get("name"), getattr(cls, "version", None)
    if name is None:
        return "has no `name`, by which sweep files would call it"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"has the name {name!r}; a name is made of letters, digits, '_' and '-'"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"lacks {', '.join(f'`{one}`' for one in missing)}, which {wanted} asks for"
    if type(version) is not int or version < 1:
        return f"must have a whole number from 1 on as its `version` but has {version!r}"
    if not (isinstance(cls.Settings, type) and issubclass(cls.Settings, Settings)):
        return (
            "has `Settings` that must subclass Settings "
            f"(from orchestrator.core.settings import Settings) but are {cls.Settings!r}"
        )
    return None


def _file(cls: type[Plugin]) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", cls.__module__))


def registry(kind: PluginKind) -> Mapping[str, type[Plugin]]:
    """Every plug-in of a kind, by name.

    Raises:
        ResurgeError: RESURGE_PLUGINS is no folder.
    """
    return _registry(kind, variable("RESURGE_PLUGINS")).plugins


def find(kind: PluginKind, name: str) -> type[Plugin]:
    """The plug-in called `name`.

    Raises:
        ResurgeError: no such plug-in; the message suggests the nearest names.
    """
    plugins = registry(kind)
    if name in plugins:
        return plugins[name]
    raise ResurgeError(f"{unknown(kind, name)}; {where_from()}")


def unknown(kind: PluginKind, name: str, noun: str | None = None) -> str:
    """What to say of a name that no usable plug-in of a kind has."""
    folder = variable("RESURGE_PLUGINS")
    known = _registry(kind, folder)
    if why := known.refused.get(name):
        return why
    for one in _outside(folder).left_out:
        if name in one.names:
            return f"{noun or kind} {name!r} is not there, because {one}"
    hint = as_list(name) or suggest(one_line(name), cast("Mapping[str, object]", known.plugins))
    return f"unknown {noun or kind} {one_line(name)!r}{hint}"


def where_from() -> str:
    """Where plug-ins of the user's own are looked for."""
    folder = variable("RESURGE_PLUGINS")
    place = "which is not set" if folder is None else f"which is {folder}"
    return f"plug-ins of your own come from the folder in RESURGE_PLUGINS, {place}"
