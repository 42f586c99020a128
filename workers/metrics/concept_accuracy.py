"""How often a picture shows what its prompt asked for, by the bundled world's judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ResurgeError
from orchestrator.plugin import BasePlugin
from workers.metrics.base import Metric, Picture, Score, means

if TYPE_CHECKING:
    from workers.shapes.judge import Judge

JUDGE_FILES = ("judge.json", "judge.safetensors")
PICTURES_PER_PASS = 256


class ConceptAccuracy(Metric):
    """1 for a picture whose judged shape, colour or fill is the probe's concept, else 0.

    Top-1 of the judge's head that has the concept among its classes. A picture on which the judge
    sees no shape at all shows no colour and no fill either.
    """

    name = "concept_accuracy"
    version = 1

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The judge knows only the shapes world."""
        if base.name == "shapes":
            return []
        return [
            f"metric {self.name!r} judges pictures of base 'shapes' only "
            f"but the base is {base.name!r}"
        ]

    def fingerprint(self) -> str:
        """sha256 of the judge's weights and classes: another judge is another metric."""
        total = hashlib.sha256()
        for name in JUDGE_FILES:
            path = _weights() / name
            if not path.is_file():
                raise ResurgeError(
                    f"the judge's {path} is missing; make it with `python -m workers.shapes.train`"
                )
            total.update(path.read_bytes())
        return total.hexdigest()

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role, and by concept for the retained ones ("retained.circle")."""
        from workers.shapes.judge import Judge

        judge = Judge.load()
        names = _judged(judge, pictures)
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


def _weights() -> Path:
    """Beside the judge's module, which is not imported here because it imports torch."""
    return Path(__file__).parent.parent / "shapes" / "weights"


def _judged(judge: Judge, pictures: Sequence[Picture]) -> dict[str, list[str]]:
    """For each head, the most probable class of each picture."""
    import numpy as np
    import torch

    names: dict[str, list[str]] = {head: [] for head in judge.classes}
    for start in range(0, len(pictures), PICTURES_PER_PASS):
        batch = np.stack([p.image for p in pictures[start : start + PICTURES_PER_PASS]])
        unit = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        for head, found in judge.names(unit).items():
            names[head] += found
    return names
