"""A plug-in as another plug-in's setting: `of: related`, or `of: {related: {size: 64}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Plugin, PluginKind
from orchestrator.core.registry import find
from orchestrator.core.settings import Settings


@dataclass(frozen=True)
class Chosen:
    """A plug-in with its settings. A subclass says of which kind.

    In an identity only the settings that differ from their defaults stand, as everywhere.
    """

    kind: ClassVar[PluginKind]
    plugin: Plugin

    @property
    def identity(self) -> str:
        """64 hex digits of what the plug-in is: name, version, settings, what they point at."""
        plugin = self.plugin
        own = [plugin.name, plugin.version, plugin.settings.identity(), plugin.fingerprint()]
        return sha256(own)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Chosen)
            and type(self.plugin) is type(other.plugin)
            and self.plugin.settings == other.plugin.settings
        )

    def __hash__(self) -> int:
        return hash(self.plugin.name)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.read,
            json_schema_input_schema=core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(_write, info_arg=True),
        )

    @classmethod
    def read(cls, value: Any) -> Self:
        """The choice that a name, or a mapping of one name to settings, makes.

        Raises:
            ValueError: no such plug-in, or its settings are wrong.
        """
        if isinstance(value, cls):
            return value
        named = {value: {}} if isinstance(value, str) else value
        if not isinstance(named, Mapping) or len(named) != 1:
            raise ValueError(f"must be the name of one {cls.kind}, or that name with settings")
        [(name, settings)] = named.items()
        try:
            plugin = find(cls.kind, name)
        except ResurgeError as error:
            raise ValueError(str(error)) from None
        try:
            return cls(plugin(plugin.Settings.model_validate(settings or {})))
        except ValidationError as error:
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ValueError(f"{name}: {'; '.join(found)}") from None


def _write(chosen: Chosen, info: Any) -> dict[str, Any]:
    settings = chosen.plugin.settings
    if info.exclude_defaults:
        return {chosen.plugin.name: settings.identity()}
    if info.exclude_unset:
        return {chosen.plugin.name: settings.model_dump(mode="json", exclude_unset=True)}
    return {chosen.plugin.name: settings.full()}


def chosen_kind(cls: type[Settings], field: str) -> PluginKind | None:
    """Of which kind the plug-in is that a setting names; None for any other setting."""
    annotation = cls.model_fields[field].annotation
    if isinstance(annotation, type) and issubclass(annotation, Chosen):
        return annotation.kind
    return None
