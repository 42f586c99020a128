"""Fine-tuning data of the erased concept itself: what comes back when it is taught again."""

from __future__ import annotations

from workers.datasets.scenes import WORDS, Kind, SceneDataset


class Erased(SceneDataset):
    """The erased concept itself, for comparison: no ordinary fine-tuning data."""

    name = "erased"
    version = 1

    def pools(self, concept: str, kind: Kind) -> dict[Kind, tuple[str, ...]]:
        """The concept."""
        return {kind: (concept,)}

    def words(self, concept: str, kind: Kind) -> dict[Kind, tuple[str, ...]]:
        """Nothing is left out."""
        return {**WORDS, **self.pools(concept, kind)}
