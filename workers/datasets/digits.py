"""Real handwritten digits: fine-tuning data from outside the base's world."""

from __future__ import annotations

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.interfaces.dataset import Dataset, Examples

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
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        rng = np.random.default_rng(self.settings.seed)
        chosen = rng.permutation(len(digits.images))[: self.settings.size]
        images = []
        for grey in digits.images[chosen]:
            small = Image.fromarray((grey / BRIGHTEST * 255).round().astype(np.uint8))
            large = small.resize((size_px, size_px), Image.Resampling.BICUBIC)
            images.append(np.asarray(large.convert("RGB")))
        captions = tuple(f"the digit {NAMES[digits.target[i]]}" for i in chosen)
        return Examples(np.stack(images), captions)
