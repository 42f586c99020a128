"""The base's own prompts, or templates of the sweep's."""

from __future__ import annotations

from pydantic import Field, field_validator

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, retained_of
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation


class TemplatesSettings(Settings):
    """What is looked at beside the erased concept, and how everything is asked for."""

    retain: tuple[str, ...] | None = Field(
        None, description="concepts that should survive; null: the base's own"
    )
    prompts: tuple[str, ...] | None = Field(
        None, description="templates that contain {concept}; null: the base's own prompts"
    )

    @field_validator("prompts")
    @classmethod
    def _each_has_a_place(cls, prompts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        wrong = [one for one in prompts or () if "{concept}" not in one]
        if wrong or prompts == ():
            got = ", ".join(map(repr, wrong)) or "none"
            raise ValueError(f"every prompt must contain {{concept}} but got {got}")
        return prompts


class Templates(Evaluation):
    """The erased concept in all the base's prompts, what should survive in the first of them.

    The erased concept's prompts are the clusters of the statistics; a retained concept gets its
    first, a concept that the base never knew its first two. `evaluate.retain` and
    `evaluate.prompts` are this set's settings.
    """

    name = "templates"
    version = 1
    Settings = TemplatesSettings
    settings: TemplatesSettings

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """Erased, retained, never known, in this order."""
        found = [Probe("erased", c, prompt) for c in erased for prompt in self._prompts(base, c)]
        found += [
            Probe("retained", other, self._prompts(base, other)[0])
            for other in self._retained(base, erased)
        ]
        if (stranger := base.never_known()) is not None:
            strange = self._prompts(base, stranger)[:2]
            found += [Probe("never_known", stranger, prompt) for prompt in strange]
        return found

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What is erased cannot be retained too."""
        read = base.as_read(concept)
        same = [one for one in self.settings.retain or () if base.as_read(one) == read]
        if not same:
            return []
        return [f"{same[0]!r} is erased by this sweep and cannot be retained too"]

    def _prompts(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        if self.settings.prompts is None:
            return base.prompts(concept)
        return tuple(one.replace("{concept}", concept) for one in self.settings.prompts)

    def _retained(self, base: BasePlugin, erased: tuple[str, ...]) -> list[str]:
        """Each once, and none that is erased."""
        if self.settings.retain is not None:
            return list(self.settings.retain)
        return list(retained_of(base, ConceptSet("", erased)))
