"""Fine-tuning data of the erased concept itself: what comes back when it is taught again."""

from __future__ import annotations

from workers.data.scenes import WORDS, Attribute, SceneDataset


class Erased(SceneDataset):
    """The erased concept itself, for comparison: no ordinary fine-tuning data."""

    name = "erased"
    version = 1

    def pools(self, concept: str, kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """The concept."""
        return {kind: (concept,)}

    def words(self, concept: str, kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """Nothing is left out."""
        return {**WORDS, **self.pools(concept, kind)}
