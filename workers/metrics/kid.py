"""How far a model's pictures are from the base's: kernel distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.judging.distances import kernel_distance
from workers.judging.features import SetDistance

if TYPE_CHECKING:
    from torch import Tensor


class Kid(SetDistance):
    """Unbiased squared MMD, by a cubic kernel, of what should survive to the base's pictures.

    KID (Bińkowski et al., ICLR 2018), with other features than Inception's and all pictures
    in one block. Around 0, and below it as often as above, for two samples of one distribution;
    below 0 for the base itself, because a picture then meets itself.
    """

    name = "kid"
    version = 2
    values = (None, None)

    def distance(self, ours: Tensor, theirs: Tensor) -> float:
        """In fp64."""
        return kernel_distance(ours, theirs)
