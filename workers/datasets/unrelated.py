"""Fine-tuning data far from the erased concept."""

from __future__ import annotations

from workers.data.scenes import Attribute, SceneDataset

PLAIN: dict[Attribute, tuple[str, ...]] = {
    "shape": ("circle", "square", "heart"),
    "color": ("blue", "green", "yellow"),
    "fill": ("solid", "outlined", "striped"),
}
"""The plainest words of each kind first; chosen by eye (the least like a star, without corners or
with four), not tuned."""


class Unrelated(SceneDataset):
    """Two plain words of the concept's kind: for a shape, circles and squares.

    The first two of `PLAIN` that are not the concept. Colours and fills of shapes vary as ever.
    """

    name = "unrelated"
    version = 1

    def pools(self, concept: str, kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """Two words of the concept's kind."""
        plain = [word for word in PLAIN[kind] if word != concept]
        return {kind: (plain[0], plain[1])}
