"""How far a model's pictures are from the base's: Fréchet distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.judging.distances import frechet
from workers.judging.features import SetDistance

if TYPE_CHECKING:
    from torch import Tensor


class Fid(SetDistance):
    """Fréchet distance of the features of what should survive to those of the base's pictures.

    FID (Heusel et al., NeurIPS 2017), with other features than Inception's: not comparable to
    published numbers. It is biased upwards where `n` is not far larger than `dimensions`; KID and
    CMMD are not. 0 for the base itself.
    """

    name = "fid"
    version = 2

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """In fp64."""
        return frechet(ours, theirs)
