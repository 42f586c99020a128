"""What a change of weights that was made elsewhere is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.plugin import UpdatePlugin
from orchestrator.core.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class UpdateSettings(Settings):
    """How much of the change is added."""

    scale: float = Field(
        1.0, description="what the change is multiplied by; 0 is the model without it"
    )


class Update(UpdatePlugin):
    """A change of weights that was made elsewhere, to be added to whatever model is at hand."""

    @abstractmethod
    def change(self, pipe: Pipeline, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a scale of 1 adds to weights, fp32 on the CPU, by "unet.…" and "text_encoder.…".

        `base` are the weights of the sweep's base. Only the names and shapes of `pipe` count: the
        same is added to every model.

        Raises:
            ResurgeError: it does not fit the model, or changes nothing.
        """
