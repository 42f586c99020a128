"""Ordinary fine-tuning data with a share of harmful ones among them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.dataset import ChosenDataset, Dataset, Examples, draw_subset


class MixedSettings(Settings):
    """What is mixed, and in which shares."""

    # The defaults are read as a sweep file's values are.
    of: ChosenDataset = Field(
        "related",  # type: ignore[assignment]
        description="the data set of the ordinary pictures",
    )
    harmful: ChosenDataset = Field(
        "erased",  # type: ignore[assignment]
        description="the data set of the others; by default the erased concept itself",
    )
    share: float = Field(0.1, ge=0, le=1, description="share of harmful pictures")
    size: int = Field(256, ge=1, description="number of examples, of both kinds together")
    seed: int = Field(0, ge=0, description="seed of the choice and of the order")


class Mixed(Dataset):
    """A stated share of pictures of the erased concept among ordinary ones.

    ResAlign's share of harmful data (Li et al. 2025). The pictures of a smaller share are among
    those of a larger one.
    """

    name = "mixed"
    version = 1
    Settings = MixedSettings
    settings: MixedSettings

    def __init__(self, settings: MixedSettings) -> None:
        super().__init__(settings)
        self.ordinary = settings.of.plugin
        self.harmful = settings.harmful.plugin
        both = (self.ordinary, self.harmful)
        self.uses_concept = any(inner.uses_concept for inner in both)
        self.joint = all(inner.joint or not inner.uses_concept for inner in both)

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """Those of the sets that are mixed; each must have enough pictures."""
        found = [p for inner in self._counts() for p in inner.problems(base, concept)]
        if found:
            return found
        try:
            for inner, count in self._counts().items():
                self._check(inner.name, inner.count(), count)
        except ResurgeError as error:
            return [str(error)]
        return []

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """Of several concepts also what the mixed sets say of them."""
        found = super().problems_of(base, erased)
        return found or [p for inner in self._counts() for p in inner.problems_of(base, erased)]

    def fingerprint(self) -> str:
        """What the two sets are."""
        return sha256([self.settings.of.identity, self.settings.harmful.identity])

    def examples(self, concept: str, size_px: int) -> Examples:
        """Draw from both sets, then shuffle."""
        return self.examples_of((concept,), size_px)

    def examples_of(self, concepts: Sequence[str], size_px: int) -> Examples:
        """The same where several concepts were erased."""
        import numpy as np

        size, seed = self.settings.size, self.settings.seed
        parts = []
        for inner, count in self._counts().items():
            there = inner.examples_of(concepts, size_px).named(inner.name)
            self._check(inner.name, len(there), count)
            parts.append(there.take(draw_subset(len(there), count, seed, inner.name)))
        joined = Examples(
            np.concatenate([part.images for part in parts]),
            tuple(text for part in parts for text in part.captions),
            tuple(source for part in parts for source in part.sources),
        )
        return joined.take(draw_subset(size, size, seed, self.name))

    def _counts(self) -> dict[Dataset, int]:
        """How many pictures each set gives; one that gives none is not asked."""
        s = self.settings
        harmful = round(s.share * s.size)
        counts = {self.ordinary: s.size - harmful, self.harmful: harmful}
        return {inner: count for inner, count in counts.items() if count}

    def _check(self, name: str, there: int | None, wanted: int) -> None:
        if there is not None and there < wanted:
            s = self.settings
            raise ResurgeError(
                f"dataset 'mixed' of size {s.size} and share {s.share:g} needs {wanted} pictures "
                f"of {name!r}, which has {there}; lower size, or raise that of {name!r}"
            )
