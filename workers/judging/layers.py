"""The layers between which LPIPS compares pictures, and what each of their channels weighs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from workers.judging.weights import read

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels in [0, 1]."""
CONVOLUTIONS = (
    ("features.0", 4, 2),
    ("features.3", 1, 2),
    ("features.6", 1, 1),
    ("features.8", 1, 1),
    ("features.10", 1, 1),
)
"""AlexNet's (Krizhevsky, 2014): name in torchvision, stride, padding."""
WEIGHTS = tuple(f"lin{index}.model.1.weight" for index in range(len(CONVOLUTIONS)))
"""LPIPS's weights of the channels, by their names there."""
POOLED_BEFORE = ("features.3", "features.6")


@dataclass(frozen=True)
class Layers:
    """`of` maps images (n, 3, height, width) in [0, 1] to layers (n, channels, h, w)."""

    of: Callable[[Tensor], list[Tensor]]
    weights: list[Tensor]


def of_the_judge() -> Layers:
    """The bundled judge's, after each of its four rectifiers; every channel weighs 1."""
    import torch
    from torch import nn

    from workers.shapes.judge import Judge

    body = Judge.load().body

    def of(images: Tensor) -> list[Tensor]:
        found, values = [], images * 2 - 1
        for module in body:
            values = module(values)
            if isinstance(module, nn.ReLU):
                found.append(values)
        return found

    channels = [m.out_channels for m in body if isinstance(m, nn.Conv2d)]
    return Layers(of, [torch.ones(count) for count in channels])


def alexnet(path: Path) -> Layers:
    """AlexNet's, after each of its five rectifiers, with LPIPS's weights of the channels.

    The file has torchvision's names ("features.0.weight", "features.0.bias", …) and LPIPS's
    ("lin0.model.1.weight" … "lin4.model.1.weight", (1, channels, 1, 1)).
    """
    import torch
    from torch.nn import functional

    tensors = read(path)
    parts = [f"{name}.{part}" for name, *_ in CONVOLUTIONS for part in ("weight", "bias")]
    if missing := [name for name in (*parts, *WEIGHTS) if name not in tensors]:
        raise ResurgeError(
            f"{path} must hold AlexNet's convolutions and LPIPS's weights but lacks "
            f"{', '.join(missing)}; docs/metrics.md says how to make it"
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def of(images: Tensor) -> list[Tensor]:
        found, values = [], (images - mean) / std
        for name, stride, padding in CONVOLUTIONS:
            if name in POOLED_BEFORE:
                values = functional.max_pool2d(values, 3, 2)
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            values = functional.conv2d(values, weight, bias, stride, padding).relu()
            found.append(values)
        return found

    return Layers(of, [tensors[name].flatten() for name in WEIGHTS])
