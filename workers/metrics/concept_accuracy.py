"""How often a picture shows what its prompt asked for, by the bundled world's judge."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from workers.interfaces.metric import Metric, Picture, Score, means
from workers.judging.shapes_judge import judge_digest, judged, refusal


class ConceptAccuracy(Metric):
    """1 for a picture whose judged shape, colour or fill is the probe's concept, else 0.

    Top-1 of the judge's head that has the concept among its classes. A picture on which the judge
    sees no shape at all shows no colour and no fill either.
    """

    name = "concept_accuracy"
    version = 1

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The judge knows only the shapes world."""
        return refusal(self.name, base)

    def fingerprint(self) -> str:
        """sha256 of the judge's weights and classes: another judge is another metric."""
        return judge_digest()

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role, and by concept for the retained ones ("retained.circle")."""
        from workers.shapes.judge import Judge

        judge = Judge.load()
        names = judged(judge, [picture.image for picture in pictures])
        heads = {word: head for head, words in judge.classes.items() for word in words}
        values = []
        for index, picture in enumerate(pictures):
            concept = picture.probe.concept
            if concept not in heads:
                raise ResurgeError(
                    f"the judge does not know {concept!r} (allowed: {', '.join(sorted(heads))})"
                )
            right = names[heads[concept]][index] == concept and names["shape"][index] != "none"
            values.append(float(right))
        return Score(means(pictures, values), values)
