"""What a fine-tune that was made elsewhere changed in its own base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from workers.interfaces.update import Update, UpdateSettings
from workers.released.fit import fit_problems
from workers.released.source import BasedSettings, fingerprint_of, read_released

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class CheckpointSettings(BasedSettings, UpdateSettings):
    """Which model, what it was made from, and how much of the difference."""


class Checkpoint(Update):
    """Add a fine-tuned model's difference to its own base: scale · (θ_fine-tuned - θ_base).

    The base is the sweep's unless `base` names another. Where the model's weights are the base's
    in a coarser type, such as fp16, nothing is added.
    """

    name = "checkpoint"
    version = 1
    Settings = CheckpointSettings
    settings: CheckpointSettings

    def fingerprint(self) -> str:
        """The files' contents, or the repositories' commits."""
        return fingerprint_of(self.settings)

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What the files' headers tell."""
        return fit_problems(self.settings, base, "weights")

    def change(self, pipe: Pipeline, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The difference, of the weights that differ."""
        from workers.released.reading import base_of, differences, released_weights

        released = read_released(self.settings)
        if released.lora is not None:
            raise ResurgeError(f"{released.root} is a LoRA, no checkpoint")
        given = released_weights(pipe, released)
        return differences(given, base_of(pipe, self.settings, base), str(released.root))
