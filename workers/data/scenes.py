"""What the data sets of the shapes world have in common: scenes that never show the concept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.dataset import Dataset, Examples
from workers.shapes.vocabulary import COLORS, FILLS, SHAPES, caption

if TYPE_CHECKING:
    import numpy as np

    from workers.shapes.render import Scene

Attribute = Literal["shape", "color", "fill"]
WORDS: Mapping[Attribute, tuple[str, ...]] = {"shape": SHAPES, "color": COLORS, "fill": FILLS}
CHANCE_OF_MENTION = 0.5
"""How often a caption names an attribute that it need not name; chosen, not tuned."""


def kind_of(concept: str) -> Attribute | None:
    """Whether a word is a shape, a colour or a fill; None for any other word."""
    return next((kind for kind, words in WORDS.items() if concept in words), None)


class SceneSettings(Settings):
    """How many pictures, and which."""

    size: int = Field(256, ge=1, description="number of examples")
    seed: int = Field(0, ge=0, description="seed of the pictures and captions")


class SceneDataset(Dataset):
    """Captioned pictures of the shapes world; neither scene nor caption ever has the concept.

    A subclass says which words of each kind scenes may show. A caption always names the attribute
    of the concept's kind, and what all scenes share; each of the others every second time.
    """

    Settings = SceneSettings
    settings: SceneSettings

    @abstractmethod
    def pools(self, concept: str, kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """The words to draw from, by kind; a kind that is left out may be any of its words."""

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The base must be shapes and know the concept; something must be left to draw."""
        if base.name != "shapes":
            return [
                f"dataset {self.name!r} needs base 'shapes' but the base is {base.name!r}; "
                "use 'folder' for your own pictures"
            ]
        kind = kind_of(concept)
        if kind is None:
            known = ", ".join(word for words in WORDS.values() for word in words)
            return [f"dataset {self.name!r} needs a shape, colour or fill but got {concept!r} "
                    f"(allowed: {known})"]  # fmt: skip
        empty = [k for k, words in self.words(concept, kind).items() if not words]
        return [f"dataset {self.name!r} has no {k} left without {concept!r}" for k in empty]

    def examples(self, concept: str, size_px: int) -> Examples:
        """Draw the scenes one after another from the settings' seed."""
        import numpy as np

        from workers.shapes.render import render

        rng = np.random.default_rng(self.settings.seed)
        drawn = [self.scene(concept, rng) for _ in range(self.settings.size)]
        images = np.stack([render(scene, size_px) for scene, _ in drawn])
        return Examples(images, tuple(text for _, text in drawn))

    def scene(self, concept: str, rng: np.random.Generator) -> tuple[Scene, str]:
        """One scene and its caption."""
        from workers.shapes.render import random_scene

        kind = kind_of(concept)
        assert kind is not None  # `problems` refuses other concepts
        pools = self.words(concept, kind)
        chosen = {k: str(rng.choice(words)) for k, words in pools.items()}
        scene = random_scene(rng, **chosen)
        said = {
            k: getattr(scene, k)
            for k in WORDS
            if rng.random() < CHANCE_OF_MENTION or k == kind or len(pools[k]) == 1
        }
        return scene, caption(**said)

    def words(self, concept: str, kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """What scenes are drawn of: the pools, or all words of a kind, and never the concept."""
        pools = {**WORDS, **self.pools(concept, kind)}
        return {k: tuple(w for w in words if w != concept) for k, words in pools.items()}
