"""How different a picture looks from the base's of the same prompt and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.interfaces.metric import Picture, Score, means
from workers.judging.model_metric import SourceMetric, SourceSettings
from workers.judging.shapes_judge import JUDGE, judge_inputs

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PER_PASS = 16


class LpipsSettings(SourceSettings):
    """Whose layers are compared."""

    MODELS: ClassVar[dict[str, str]] = {}

    features: str = Field(
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
        from workers.judging.layers import alexnet, of_the_judge
        from workers.runtime.parts import passes

        layers = of_the_judge() if self.asks_the_judge() else alexnet(self.file("features"))
        values = list[float]()
        with torch.inference_mode():
            for pairs in passes(list(zip(pictures, reference, strict=True)), PER_PASS):
                ours, theirs = (
                    layers.of(self._pixels([picture.image for picture in some]))
                    for some in zip(*pairs, strict=True)
                )
                values += perceptual(ours, theirs, layers.weights).tolist()
        return Score(means(pictures, values), values)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        """(n, 3, height, width) in [0, 1]; the judge's at its size."""
        import numpy as np
        import torch

        if self.asks_the_judge():
            return torch.cat(judge_inputs(images))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
