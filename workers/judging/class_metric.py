"""A metric whose model is a classifier of pictures: what is asked must be among its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.core.plugin import Asked, BasePlugin
from workers.judging.classes import refusal, refuse_unknown
from workers.judging.model_metric import SourceMetric, SourceSettings


class ClassSettings(SourceSettings):
    """Settings that name a classifier, and its classes of a concept where they differ."""

    labels: Mapping[str, tuple[str, ...]]


class ClassMetric(SourceMetric):
    """Refuses a concept that is no class as soon as the class list can be had.

    That is when the sweep is read, of a folder, of a repository in the cache and of one on a hub
    that answers; and in any case on the worker, before it draws.
    """

    settings: ClassSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The erased concept must be a class."""
        return self._without_class((concept,))

    def roles(self, asked: Asked) -> frozenset[str]:
        """A concept that nobody knows is no class."""
        return super().roles(asked) - {"never_known"}

    def problems_with(self, asked: Asked) -> list[str]:
        """So must those be that should survive."""
        return self._without_class(asked.retained)

    def _without_class(self, concepts: Sequence[str]) -> list[str]:
        return refusal(self.name, self.settings.source(), concepts, self.settings.labels)

    def look_ahead(self, erased: Sequence[str], kept: Sequence[str]) -> None:
        """The same on the worker, where the model must be had anyway."""
        s = self.settings
        refuse_unknown(self.name, s.source(), (*erased, *kept), s.labels)
