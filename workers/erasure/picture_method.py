"""What the methods that train on pictures have in common."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, Need
from workers.erasure.materials import need_pictures
from workers.interfaces.unlearner import OutputSettings, TrainSettings, Unlearner


class PictureSettings(TrainSettings):
    """Training on pictures that the model itself draws, once, before it is changed."""

    images_per_prompt: int = Field(8, ge=1, description="pictures of each prompt of the concept")
    retain_images_per_prompt: int = Field(
        2, ge=1, description="pictures of each prompt of what should survive"
    )


class AnchoredSettings(PictureSettings, OutputSettings):
    """With another concept to stand in for the erased one."""

    anchor: str | None = Field(
        None, description="the concept that stands in; null: the base's own choice"
    )


class PictureUnlearner(Unlearner):
    """A method whose materials are pictures of the concept and of what should survive."""

    uses = frozenset({"retained"})

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """Something must be there to retain."""
        found = super().problems(base, concept)
        if "retained" in self.uses and not self.preserved(base, concept):
            found.append(
                f"unlearner {self.name!r} trains on what should survive but the base retains "
                "nothing; name some concepts in the base's `retained` or the method's `preserve`"
            )
        return found

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures to forget, and pictures to retain if the method uses them."""
        s = self.settings
        needs = {"forget": need_pictures(base, self.all_prompts(base, erased), s.images_per_prompt)}
        if "retained" in self.uses:
            kept = self.kept_prompts(base, erased)
            needs["retain"] = need_pictures(base, kept, s.retain_images_per_prompt)
        return needs
