"""An unlearned model that others released, in an unlearning method's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.plugin import BasePlugin
from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner
from workers.released.fit import fit_problems
from workers.released.source import BasedSettings, fingerprint_of, read_released

if TYPE_CHECKING:
    from torch import Tensor


class WeightsSettings(BasedSettings):
    """Which weights, and what they were made from."""

    scale: float = Field(1.0, gt=0, description="what the change is multiplied by")


class ReleasedWeights(Unlearner):
    """Take the weights that others released: their unlearned model against the true base.

    A folder in diffusers' layout, a UNet or a text encoder alone, a .safetensors file with some or
    all of their weights (in diffusers' names or those of original checkpoints), or a LoRA. What
    they differ by from what they were made from, which is the sweep's base unless `base` says
    otherwise, is what erases; autoencoder and tokenizer stay the base's. Weights that are the
    base's in a coarser type, such as fp16, count as the base's.
    """

    name = "weights"
    version = 1
    seeded = False
    is_method = False
    joint = True
    jointly = "whatever the weights erase"
    Settings = WeightsSettings
    settings: WeightsSettings

    def prompts(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """None: nothing is trained here."""
        return ()

    def fingerprint(self) -> str:
        """The files' contents, or the repositories' commits."""
        return fingerprint_of(self.settings)

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What the files' headers tell."""
        return fit_problems(self.settings, base, "either")

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """The new values of the weights that differ."""
        from workers.editing.edits import Weights, live_parameters, snapshot
        from workers.released.reading import base_of, differences, merged_lora, released_weights

        pipe, scale = erasure.pipe, self.settings.scale
        released = read_released(self.settings)
        now = {name: snapshot(value) for name, value in live_parameters(pipe).items()}
        given: Mapping[str, Tensor] = {}
        before: Mapping[str, Tensor] = {}
        if released.lora is not None:
            change = merged_lora(pipe, released.lora)
        else:
            given = released_weights(pipe, released)
            before = base_of(pipe, self.settings, now if erasure.base is None else erasure.base)
            change = differences(given, before, str(released.root))

        def new(name: str, delta: Tensor) -> Tensor:
            value = now[name]
            # Not by the difference where that would only round: it is to be the released weight.
            if scale == 1 and name in given and value.equal(before[name]):
                return given[name].to(value.dtype)
            return (value.float() + scale * delta).to(value.dtype)

        return Unlearned([Weights({name: new(name, delta) for name, delta in change.items()})])
