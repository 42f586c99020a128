"""What the data sets of the shapes world have in common: scenes that never show the concept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
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
    """Captioned pictures of the shapes world; neither scene nor caption ever has a concept.

    A subclass says which words of each kind scenes may show. A caption always names the attributes
    of the concepts' kinds, and what all scenes share; each of the others every second time.
    """

    joint = True

    Settings = SceneSettings
    settings: SceneSettings

    @abstractmethod
    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """The words to draw from, by kind, where these concepts, all of that kind, are erased; a
        kind that is left out may be any of its words.
        """

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
        return self._empty((concept,), concept)

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """Something must be left to draw without any of them."""
        return super().problems_of(base, erased) or self._empty(erased.concepts, erased.name)

    def _empty(self, concepts: tuple[str, ...], name: str) -> list[str]:
        empty = [kind for kind, words in self.words(concepts).items() if not words]
        return [f"dataset {self.name!r} has no {kind} left without {name!r}" for kind in empty]

    def examples(self, concept: str, size_px: int) -> Examples:
        """Draw the scenes one after another from the settings' seed."""
        return self.examples_of((concept,), size_px)

    def examples_of(self, concepts: Sequence[str], size_px: int) -> Examples:
        """The same without any of several concepts."""
        import numpy as np

        from workers.shapes.render import render

        rng = np.random.default_rng(self.settings.seed)
        drawn = [self.scene(tuple(concepts), rng) for _ in range(self.settings.size)]
        images = np.stack([render(scene, size_px) for scene, _ in drawn])
        return Examples(images, tuple(text for _, text in drawn))

    def scene(self, concepts: tuple[str, ...], rng: np.random.Generator) -> tuple[Scene, str]:
        """One scene and its caption."""
        from workers.shapes.render import random_scene

        kinds, pools = set(by_kind(concepts)), self.words(concepts)
        chosen = {k: str(rng.choice(words)) for k, words in pools.items()}
        scene = random_scene(rng, **chosen)
        said = {
            k: getattr(scene, k)
            for k in WORDS
            if rng.random() < CHANCE_OF_MENTION or k in kinds or len(pools[k]) == 1
        }
        return scene, caption(**said)

    def words(self, concepts: tuple[str, ...]) -> dict[Attribute, tuple[str, ...]]:
        """What scenes are drawn of: the pools, or all words of a kind, and never a concept."""
        pools = dict(WORDS)
        for kind, own in by_kind(concepts).items():
            pools |= self.pools(own, kind)
        return {k: tuple(w for w in words if w not in concepts) for k, words in pools.items()}


def by_kind(concepts: tuple[str, ...]) -> dict[Attribute, tuple[str, ...]]:
    """Words of the world by what they are."""
    found: dict[Attribute, tuple[str, ...]] = {}
    for concept in concepts:
        kind = kind_of(concept)
        assert kind is not None  # `problems` refuses other concepts
        found[kind] = (*found.get(kind, ()), concept)
    return found
