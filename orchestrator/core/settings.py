"""The settings of plug-ins: typed, frozen, with presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.core.hints import suggest


class Settings(BaseModel):
    """A plug-in's settings: frozen, no unknown keys, every field with a default where one exists.

    Fields carry a `description`; it is shown by `resurge list` and in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    ONLY_MEMORY: ClassVar[frozenset[str]] = frozenset()
    """Settings that change what the work takes and not what comes out."""

    def uncounted(self) -> frozenset[str]:
        """The settings on which no result hangs, beside the others that are chosen."""
        return self.ONLY_MEMORY

    def identity(self) -> dict[str, Any]:
        """The settings that make a result what it is: those that differ from the default."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=set(self.uncounted()))

    def full(self) -> dict[str, Any]:
        """Every setting, as JSON values: what a record keeps."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Preset:
    """Values to begin from, and whose they are.

    `origin` is "released" (what the method's published code computes with), "paper" (what its paper
    says, where the code differs) or "ours"; `source` says where exactly they are from.
    """

    values: Mapping[str, Any]
    origin: Literal["released", "paper", "ours"]
    source: str

    @property
    def title(self) -> str:
        """As it is shown."""
        return "ours" if self.origin == "ours" else f"published ({self.origin})"


Presets = Mapping[str, Preset]
"""By name."""


class PresetSettings(Settings):
    """Settings that can begin from a named set of values, such as a paper's.

    A subclass lists them in `PRESETS`, with the values that differ from the defaults. A preset
    is a way of writing values, so it is no part of the identity: the same values written out are
    the same stage.
    """

    PRESETS: ClassVar[Presets] = {}

    preset: str | None = Field(
        None, description="begin from a published set of values (`resurge list unlearners`)"
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_from_the_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("preset"), str):
            return values
        name = values["preset"]
        if name not in cls.PRESETS:
            known = suggest(name, cls.PRESETS) if cls.PRESETS else "; this method has no presets"
            raise ValueError(f"unknown preset {name!r}{known}")
        return {**cls.PRESETS[name].values, **values}

    def identity(self) -> dict[str, Any]:
        """The values that differ from the defaults, however they were written."""
        return _without_preset(super().identity())

    def full(self) -> dict[str, Any]:
        """Every value; the preset's name is none."""
        return _without_preset(super().full())


def _without_preset(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "preset"}
