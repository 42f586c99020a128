"""What a fine-tuning data set is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.plugin import DatasetPlugin

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Examples:
    """Captioned pictures: `images` is uint8 of shape (n, height, width, 3)."""

    images: np.ndarray
    captions: tuple[str, ...]


class Dataset(DatasetPlugin):
    """Captioned pictures for ordinary fine-tuning; the same settings always give the same ones."""

    @abstractmethod
    def examples(self, concept: str, size_px: int) -> Examples:
        """All examples as square pictures of `size_px`; `concept` is the erased one.

        Raises:
            ResurgeError: the files are missing or unreadable; every bad row is named.
        """
