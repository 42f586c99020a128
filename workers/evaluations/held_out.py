"""What a model is asked in sentences that no method trains on by default."""

from __future__ import annotations

from pydantic import Field

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, retained_of
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation


class HeldOutSettings(Settings):
    """What is looked at beside the erased concept."""

    retain: tuple[str, ...] | None = Field(
        None, description="concepts that should survive; null: the base's own"
    )


class HeldOut(Evaluation):
    """As `templates`, but in the base's held-out sentences in place of its own prompts.

    Its own prompts are what methods with `prompts: base` train on, and a method that has learned a
    sentence has not forgotten a concept. A retained concept gets the first sentence, a concept that
    the base never knew the first two.
    """

    name = "held_out"
    version = 1
    Settings = HeldOutSettings
    settings: HeldOutSettings

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """Erased, retained, never known, in this order."""
        found = [Probe("erased", c, prompt) for c in erased for prompt in base.held_out(c)]
        chosen = self.settings.retain
        retained = retained_of(base, ConceptSet("", erased)) if chosen is None else chosen
        found += [Probe("retained", other, base.held_out(other)[0]) for other in retained]
        if (stranger := base.never_known()) is not None:
            strange = base.held_out(stranger)[:2]
            found += [Probe("never_known", stranger, prompt) for prompt in strange]
        return found

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What is erased cannot be retained too; a base may know no such concept."""
        read = base.as_read(concept)
        same = [one for one in self.settings.retain or () if base.as_read(one) == read]
        return [f"{one!r} is erased by this sweep and cannot be retained too" for one in same]
