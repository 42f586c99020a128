"""What an unlearning changed, as data: weights, low-rank factors, or modules beside the UNet.

Edits apply to a pipeline in the order in which they were made, are undone together (the pipeline
becomes the base again, bit for bit), and are stored as safetensors with only what changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.core.errors import ResurgeError
from workers.interfaces.edit import ModelEdit

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

EDITABLE = ("unet", "text_encoder")
"""The pipeline's parts that edits may change; the autoencoder and the tokenizer stay."""


def live_parameters(pipe: Pipeline) -> dict[str, nn.Parameter]:
    """The editable weights, named "unet.…" and "text_encoder.…"."""
    return {
        f"{part}.{name}": value
        for part in EDITABLE
        for name, value in getattr(pipe, part).named_parameters()
    }


@dataclass(frozen=True)
class Weights(ModelEdit):
    """New values of named weights ("unet.…", "text_encoder.…")."""

    values: Mapping[str, Tensor]
    kind = "weights"

    @classmethod
    def of(cls, pipe: Pipeline, names: Sequence[str] | None = None) -> Weights:
        """The present values of the named weights; of all of the UNet's if none are named."""
        live = live_parameters(pipe)
        chosen = [n for n in live if n.startswith("unet.")] if names is None else names
        return cls({name: snapshot(live[name]) for name in chosen})

    @torch.no_grad()
    def apply(self, pipe: Pipeline) -> None:
        live = live_parameters(pipe)
        _refuse([n for n, t in self.values.items() if n not in live or live[n].shape != t.shape])
        for name, value in self.values.items():
            live[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.values)

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Weights:
        return cls(dict(tensors))


@dataclass(frozen=True)
class LowRank(ModelEdit):
    """W + scale · up · down for named layers of the UNet (Hu et al. 2021), kept as factors.

    `factors` maps a layer's path in the UNet to (down (rank, inputs), up (outputs, rank)); a
    convolution's weight is taken as (outputs, inputs · height · width).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float = 1.0
    kind = "lora"

    @torch.no_grad()
    def apply(self, pipe: Pipeline) -> None:
        layers = dict(pipe.unet.named_modules())
        wrong = []
        for path, (down, up) in self.factors.items():
            weight = getattr(layers.get(path), "weight", None)
            shape = (up.shape[0], down.shape[1])
            if not isinstance(weight, Tensor) or (weight.shape[0], weight[0].numel()) != shape:
                wrong.append(path)
        _refuse(wrong)
        for path, (down, up) in self.factors.items():
            weight = layers[path].weight
            delta = up.to(weight.device) @ down.to(weight.device)
            weight += self.scale * delta.view_as(weight)

    def tensors(self) -> dict[str, Tensor]:
        pairs = self.factors.items()
        downs = {f"{path}.down": down for path, (down, _) in pairs}
        return downs | {f"{path}.up": up for path, (_, up) in pairs}

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> LowRank:
        paths = sorted(name.removesuffix(".down") for name in tensors if name.endswith(".down"))
        factors = {p: (tensors[f"{p}.down"], tensors[f"{p}.up"]) for p in paths}
        return cls(factors, float(config["scale"]))


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ResurgeError(
            f"these weights do not fit the base: {', '.join(wrong[:5])}{more}; "
            "were they made with another base?"
        )


def snapshot(value: Tensor) -> Tensor:
    """A copy on the CPU that later changes do not reach."""
    return value.detach().to("cpu", copy=True).contiguous()
