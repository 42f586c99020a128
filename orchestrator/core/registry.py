"""Which plug-ins there are: ours, installed ones, and those of a folder."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import Plugin, PluginKind

HOMES: Mapping[PluginKind, str] = {
    "base": "workers.bases",
    "unlearner": "workers.unlearners",
    "material": "workers.materials",
    "dataset": "workers.datasets",
    "metric": "workers.metrics",
    "recipe": "workers.recipes",
    "executor": "orchestrator.executors",
}


@cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    """Installed plug-ins; finding them reads every distribution's metadata."""
    return tuple(importlib.metadata.entry_points(group="resurge.plugins"))


def _outside_modules() -> Iterator[ModuleType]:
    """Modules from entry points and from the folder that RESURGE_PLUGINS names."""
    for entry in _entry_points():
        loaded = entry.load()
        yield loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]
    folder = os.environ.get("RESURGE_PLUGINS")
    if not folder:
        return
    if not Path(folder).is_dir():
        raise ResurgeError(f"RESURGE_PLUGINS must be a folder but is {folder!r}")
    for path in sorted(Path(folder).absolute().glob("*.py")):
        yield _import_file(path)


def _import_file(path: Path) -> ModuleType:
    name = f"resurge_plugins.{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ResurgeError(f"{path} is not a Python file that can be loaded as a plug-in")
    module = importlib.util.module_from_spec(spec)
    # Its functions can then be pickled: the code that an executor sends to its workers, say.
    sys.modules.setdefault("resurge_plugins", ModuleType("resurge_plugins"))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _registry(kind: PluginKind, outside: str | None) -> dict[str, type[Plugin]]:
    home = importlib.import_module(HOMES[kind])
    # A home is a package, or one module with several plug-ins.
    files = [info.name for info in pkgutil.iter_modules(getattr(home, "__path__", []))]
    ours = [home, *(importlib.import_module(f"{HOMES[kind]}.{name}") for name in files)]
    found: dict[str, type[Plugin]] = {}
    for module in (*ours, *_outside_modules()):
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Plugin)
                and not inspect.isabstract(value)
                and value.__module__ == module.__name__
                and getattr(value, "kind", None) == kind
                and "name" in vars(value)
            ):
                other = found.setdefault(value.name, value)
                if other is not value:
                    raise ResurgeError(
                        f"two plug-ins of kind {kind} are called {value.name!r}: "
                        f"{other.__module__} and {value.__module__}; rename one"
                    )
    return dict(sorted(found.items()))


def registry(kind: PluginKind) -> dict[str, type[Plugin]]:
    """Every plug-in of a kind, by name."""
    return _registry(kind, os.environ.get("RESURGE_PLUGINS"))


def find(kind: PluginKind, name: str) -> type[Plugin]:
    """The plug-in called `name`.

    Raises:
        ResurgeError: no such plug-in; the message suggests the nearest names.
    """
    plugins = registry(kind)
    if name in plugins:
        return plugins[name]
    raise ResurgeError(f"unknown {kind} {name!r}{suggest(name, plugins)}")
