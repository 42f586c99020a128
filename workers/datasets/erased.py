"""Fine-tuning data of the erased concept itself: what comes back when it is taught again."""

from __future__ import annotations

from workers.data.scenes import WORDS, Attribute, SceneDataset, by_kind


class Erased(SceneDataset):
    """The erased concept itself, for comparison: no ordinary fine-tuning data."""

    name = "erased"
    version = 1

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """The concepts."""
        return {kind: concepts}

    def words(self, concepts: tuple[str, ...]) -> dict[Attribute, tuple[str, ...]]:
        """Nothing is left out."""
        return {**WORDS, **by_kind(concepts)}
