"""Fine-tuning data from the erased concept's neighbourhood."""

from __future__ import annotations

from workers.data.scenes import Attribute, SceneDataset


class Related(SceneDataset):
    """All other words of the concept's kind: for a shape, the other seven known shapes."""

    name = "related"
    version = 1

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """Everything but the concepts."""
        return {}
