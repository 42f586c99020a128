"""A LoRA that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from workers.interfaces.update import Update, UpdateSettings
from workers.released.fit import fit_problems
from workers.released.source import SourceSettings, fingerprint_of, read_released

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class LoraSettings(SourceSettings, UpdateSettings):
    """Which file, and how much of it."""


class Lora(Update):
    """Add a LoRA file: scale · alpha / rank · up · down, to the UNet and the text encoder.

    Rank and alpha are the file's own; where it names no alpha it is the rank, as diffusers reads
    such a file. The names may be kohya's, diffusers' or peft's (the latter with its
    adapter_config.json), the layers linear or convolutions.
    """

    name = "lora"
    version = 1
    Settings = LoraSettings
    settings: LoraSettings

    def fingerprint(self) -> str:
        """The file's contents, or the repository's commit."""
        return fingerprint_of(self.settings)

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What the file's header tells."""
        return fit_problems(self.settings, base, "lora")

    def change(self, pipe: Pipeline, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The products of the factors."""
        from workers.released.reading import merged_lora

        released = read_released(self.settings)
        if released.lora is None:
            raise ResurgeError(f"{released.root} is no LoRA")
        return merged_lora(pipe, released.lora)
