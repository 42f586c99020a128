"""How far a model's pictures are from the base's: MMD of CLIP embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from workers.data.files import PlaceText
from workers.judging.distances import rbf_distance
from workers.judging.features import SetDistance, SetSettings
from workers.judging.model_metric import CLIP_L14

if TYPE_CHECKING:
    from torch import Tensor


class CmmdSettings(SetSettings):
    """The features, and the kernel's width. Published: ViT-L/14 at 336 pixels, 10, 1000."""

    features: PlaceText = Field(
        CLIP_L14,
        description="a CLIP model: a folder or a repository id; or judge: the bundled world's",
    )
    sigma: float = Field(10.0, gt=0, description="the Gaussian kernel's σ")
    scale: float = Field(1000.0, gt=0, description="times the squared MMD")


class Cmmd(SetDistance):
    """1000 · unbiased squared MMD, Gaussian kernel, of what should survive to the base's pictures.

    CMMD (Jayasumana et al., CVPR 2024) on CLIP embeddings of length 1. Around 0, and below
    it as often as above, for two samples of one distribution.
    """

    name = "cmmd"
    version = 2
    values = (None, None)
    Settings = CmmdSettings
    settings: CmmdSettings

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """In fp64; the judge's features are scaled to length 1 as CLIP's are."""
        from torch.nn import functional

        s = self.settings
        ours, theirs = (functional.normalize(some.double(), dim=1) for some in (ours, theirs))
        return s.scale * rbf_distance(ours, theirs, s.sigma)
