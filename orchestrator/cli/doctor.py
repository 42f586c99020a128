"""The base that `resurge doctor` is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from orchestrator.config.checks import build, missing
from orchestrator.core.errors import ResurgeError
from orchestrator.core.registry import find, registry

if TYPE_CHECKING:
    from workers.interfaces.base import Base


def open_base(name: str, settings: Mapping[str, Any]) -> Base:
    """The base of that name; or `diffusers` with that source and the given settings.

    Raises:
        ResurgeError: the settings are wrong, or the named base cannot do without some.
    """
    if name not in registry("base"):
        name, settings = "diffusers", {"source": name, **settings}
    elif needed := missing(find("base", name).Settings, ()):
        raise ResurgeError(f"base {name!r} needs settings ({', '.join(needed)}); give its source")
    elif settings:
        given = ", ".join(settings)
        raise ResurgeError(f"base {name!r} takes none of {given}; they are for diffusers sources")
    plugin = find("base", name)
    built, faults = build(plugin.Settings, settings)
    if built is None:
        raise ResurgeError("; ".join(faults))
    return cast("Base", plugin(built))
