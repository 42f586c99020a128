"""The bundled world's three groups: the erased concept, other words for it, other concepts."""

from __future__ import annotations

from orchestrator.core.artifacts import Probe
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation, strangers
from workers.shapes.vocabulary import WORDINGS, said


class ShapesSet(Evaluation):
    """Of base `shapes`: the erased concept, the same in three other wordings, and the others.

    The model has one word for each of its concepts, so no word is a synonym. What stands for
    synonyms are sentences that name the concept in words which the model's captions never had
    beside it and no method trains on ("a photo of a star"). The base draws the concept from them
    nearly as surely as from its captions (docs/evaluations.md has the shares, measured).
    """

    name = "shapes"
    version = 1
    Settings = Settings

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """Erased, synonym, other, never known, in this order."""
        if base.name != self.name:
            raise ResurgeError(
                f"the evaluation set 'shapes' is of base 'shapes' but the base is {base.name!r}"
            )
        found = [Probe("erased", c, prompt) for c in erased for prompt in base.prompts(c)]
        found += [Probe("synonym", c, prompt) for c in erased for prompt in said(WORDINGS, c)]
        others = dict.fromkeys(other for c in erased for other in base.retained(c))
        found += [Probe("other", c, base.prompts(c)[0]) for c in others if c not in erased]
        return found + strangers(base)
