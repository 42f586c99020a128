"""Fine-tuning data from the erased concept's neighbourhood."""

from __future__ import annotations

from workers.datasets.scenes import Kind, SceneDataset


class Related(SceneDataset):
    """All other words of the concept's kind: for a shape, the other seven known shapes."""

    name = "related"
    version = 1

    def pools(self, concept: str, kind: Kind) -> dict[Kind, tuple[str, ...]]:
        """Everything but the concept."""
        return {}
