"""Real handwritten digits: fine-tuning data from outside the base's world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.interfaces.dataset import Dataset, Examples

if TYPE_CHECKING:
    import numpy as np

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BRIGHTEST = 16
"""scikit-learn's digits are grey values from 0 to 16."""


class DigitsSettings(Settings):
    """How many digits, and which."""

    size: int = Field(256, ge=1, le=1797, description="number of examples, of 1797")
    seed: int = Field(0, ge=0, description="seed of the choice")


class Digits(Dataset):
    """Handwritten digits (UCI, from scikit-learn, 8 × 8) with captions as "the digit three"."""

    name = "digits"
    version = 1
    uses_concept = False
    Settings = DigitsSettings
    settings: DigitsSettings

    def examples(self, concept: str, size_px: int) -> Examples:
        """A choice without repetition, white on black, enlarged smoothly."""
        import numpy as np
        from sklearn.datasets import load_digits

        digits = load_digits()
        rng = np.random.default_rng(self.settings.seed)
        chosen = rng.permutation(len(digits.images))[: self.settings.size]
        images = np.stack([_enlarge(digits.images[i], size_px) for i in chosen])
        return Examples(images, tuple(f"the digit {NAMES[digits.target[i]]}" for i in chosen))


def _enlarge(grey: np.ndarray, size_px: int) -> np.ndarray:
    """Grey values (8, 8) in 0 … 16 -> uint8 (size_px, size_px, 3)."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray((grey / BRIGHTEST * 255).round().astype(np.uint8))
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC).convert("RGB"))
