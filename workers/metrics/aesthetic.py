"""How beautiful LAION's predictor finds a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, means
from workers.judging.model_metric import CLIP_L14, REVISION, SourceMetric, SourceSettings
from workers.judging.weights import check_width, read


class AestheticSettings(SourceSettings):
    """The predictor and the CLIP model that it was trained on."""

    head: PlaceText = Field(
        description="a .safetensors file with linear layers: <name>.weight (outputs, inputs) and "
        "<name>.bias, in the order of the numbers in their names, the last with one output"
    )
    model: PlaceText = Field(CLIP_L14, description="a CLIP model: a folder or a repository id")
    revision: str | None = Field(None, description=REVISION)


class Aesthetic(SourceMetric):
    """LAION's aesthetic score, about 1 to 10: linear layers on the CLIP embedding.

    LAION-Aesthetics (Schuhmann et al., LAION-5B, NeurIPS 2022 Datasets): version 1 is one layer,
    version 2 five layers without anything between them, both on ViT-L/14 embeddings of length 1.
    """

    name = "aesthetic"
    version = 1
    values = (None, None)
    higher = "more beautiful"
    FILES: ClassVar[tuple[str, ...]] = ("head",)
    Settings = AestheticSettings
    settings: AestheticSettings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role."""
        from torch.nn import functional

        from workers.judging.clip import load_clip

        found = load_clip(self.settings.source()).images([picture.image for picture in pictures])
        path = self.file("head")
        tensors = read(path)
        names = [name.removesuffix("weight") for name in tensors if name.endswith("weight")]
        if not names or {f"{n}{end}" for n in names for end in ("weight", "bias")} != set(tensors):
            raise ResurgeError(
                f"{path} must hold a weight and a bias for each layer but holds {list(tensors)}"
            )
        layers = [(tensors[f"{name}weight"], tensors[f"{name}bias"]) for name in names]
        if len(layers[-1][0]) != 1:
            raise ResurgeError(
                f"{path}: the last layer must have one output but has {len(layers[-1][0])}"
            )
        check_width(path, layers[0][0].shape[1], found.shape[1])
        for weight, bias in layers:
            found = functional.linear(found, weight, bias)
        values = found[:, 0].tolist()
        return Score(means(pictures, values), values)
