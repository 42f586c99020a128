"""The ten classes of CIFAR-10 with three synonyms each, as MACE's experiment on objects has them.

The ten classes and that each has three synonyms are MACE's (Lu et al., CVPR 2024); the words here
are our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator

from orchestrator.core.artifacts import Probe
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation, strangers

SYNONYMS: Mapping[str, tuple[str, str, str]] = {
    "airplane": ("aircraft", "plane", "jet"),
    "automobile": ("car", "motorcar", "sedan"),
    "bird": ("songbird", "winged creature", "feathered animal"),
    "cat": ("kitten", "kitty", "feline"),
    "deer": ("stag", "doe", "fawn"),
    "dog": ("puppy", "hound", "canine"),
    "frog": ("toad", "tree frog", "bullfrog"),
    "horse": ("pony", "stallion", "mare"),
    "ship": ("boat", "vessel", "ocean liner"),
    "truck": ("lorry", "pickup", "hauler"),
}


class ObjectsSettings(Settings):
    """How the classes are asked for."""

    prompts: tuple[str, ...] = Field(
        ("a photo of the {}",),
        description="templates with {} where the class or the synonym stands; each is a cluster "
        "of the statistics",
    )
    other_prompts: int = Field(
        1, ge=1, description="how many of them a class that should survive gets, the first ones"
    )

    @field_validator("prompts")
    @classmethod
    def _each_has_one_place(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in prompts if one.count("{}") != 1]
        if wrong or not prompts or len(set(prompts)) < len(prompts):
            got = ", ".join(map(repr, wrong or prompts)) or "none"
            raise ValueError(f"every prompt must contain {{}} once, each once, but got {got}")
        return prompts


class Objects(Evaluation):
    """CIFAR-10's ten classes: the erased one, three synonyms of it, and the nine others.

    A synonym counts as its class: its picture should show what the class is asked for (MACE, Lu et
    al., CVPR 2024).
    """

    name = "objects"
    version = 1
    Settings = ObjectsSettings
    settings: ObjectsSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The concept must be one of the ten."""
        if concept in SYNONYMS:
            return []
        return [f"evaluation set 'objects' does not know {concept!r}{suggest(concept, SYNONYMS)}"]

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """Erased, synonym, other, never known, in this order."""
        s = self.settings
        found = [Probe("erased", c, one.replace("{}", c)) for c in erased for one in s.prompts]
        found += [
            Probe("synonym", concept, one.replace("{}", word))
            for concept in erased
            for word in SYNONYMS[concept]
            for one in s.prompts
        ]
        found += [
            Probe("other", concept, one.replace("{}", concept))
            for concept in SYNONYMS
            if concept not in erased
            for one in s.prompts[: s.other_prompts]
        ]
        return found + strangers(base)
