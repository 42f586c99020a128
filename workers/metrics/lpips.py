"""How different a picture looks from the base's of the same prompt and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, means
from workers.judging.model_metric import SourceMetric, SourceSettings
from workers.judging.shapes_judge import JUDGE, judge_inputs
from workers.judging.weights import read

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PER_PASS = 16
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


class LpipsSettings(SourceSettings):
    """Whose layers are compared."""

    MODELS: ClassVar[dict[str, str]] = {}

    features: PlaceText = Field(
        JUDGE,
        description="judge: the bundled world's; or a .safetensors file with AlexNet's "
        "convolutions and LPIPS's weights, as docs/metrics.md says how to make it",
    )


class Lpips(SourceMetric):
    """Perceptual distance of each picture to the base's, which was drawn from the same noise.

    LPIPS (Zhang et al., CVPR 2018, eq. 1), AlexNet with learned channel weights. With the judge's
    layers every channel weighs 1: for the bundled world only, and not comparable. 0 for the base.
    """

    name = "lpips"
    version = 1
    reference = True
    values = (0.0, None)
    higher = "less like the base's picture"
    INSTEAD = "set features to a file with AlexNet's weights"
    FILES: ClassVar[tuple[str, ...]] = ("features",)
    Settings = LpipsSettings
    settings: LpipsSettings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role of the distances of picture i to reference i."""
        import torch

        from workers.judging.distances import perceptual
        from workers.runtime.parts import passes

        layers = of_the_judge() if self.asks_the_judge() else alexnet(self.file("features"))
        values = list[float]()
        with torch.inference_mode():
            for pairs in passes(list(zip(pictures, reference, strict=True)), PER_PASS):
                ours, theirs = (
                    layers.of([picture.image for picture in some])
                    for some in zip(*pairs, strict=True)
                )
                values += perceptual(ours, theirs, layers.weights).tolist()
        return Score(means(pictures, values), values)


@dataclass(frozen=True)
class Layers:
    """The layers between which pictures are compared, and what each of their channels weighs.

    `of` maps n pictures uint8 (height, width, 3) to layers (n, channels, h, w).
    """

    of: Callable[[Sequence[np.ndarray]], list[Tensor]]
    weights: list[Tensor]


def of_the_judge() -> Layers:
    """The bundled judge's, after each of its four rectifiers; every channel weighs 1."""
    import torch
    from torch import nn

    from workers.shapes.judge import Judge

    body = Judge.load().body

    def of(images: Sequence[np.ndarray]) -> list[Tensor]:
        found, values = [], torch.cat(judge_inputs(images)) * 2 - 1
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
    import numpy as np
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

    def of(images: Sequence[np.ndarray]) -> list[Tensor]:
        unit = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        found, values = [], (unit - mean) / std
        for name, stride, padding in CONVOLUTIONS:
            if name in POOLED_BEFORE:
                values = functional.max_pool2d(values, 3, 2)
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            values = functional.conv2d(values, weight, bias, stride, padding).relu()
            found.append(values)
        return found

    return Layers(of, [tensors[name].flatten() for name in WEIGHTS])
