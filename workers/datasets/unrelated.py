"""Fine-tuning data far from the erased concept."""

from __future__ import annotations

from workers.data.scenes import WORDS, Attribute, SceneDataset

PLAIN: dict[Attribute, tuple[str, ...]] = {
    "shape": ("circle", "square", "heart"),
    "color": ("blue", "green", "yellow"),
    "fill": ("solid", "outlined", "striped"),
}
"""The plainest words of each kind first; chosen by eye (the least like a star, without corners or
with four), not tuned."""


class Unrelated(SceneDataset):
    """Two plain words of the concept's kind: for a shape, circles and squares.

    The first two of `PLAIN`, then of all words, that are not erased. Colours and fills of shapes
    vary as ever.
    """

    name = "unrelated"
    version = 1

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """Two words of the concept's kind."""
        every = dict.fromkeys((*PLAIN[kind], *WORDS[kind]))
        return {kind: tuple(word for word in every if word not in concepts)[:2]}
