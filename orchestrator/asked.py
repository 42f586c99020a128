"""What every model of a sweep is asked to draw."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.grid import Grid
from orchestrator.plugin import Asked, BasePlugin

if TYPE_CHECKING:
    from orchestrator.sweep import Evaluate


def probes(base: BasePlugin, concept: str, evaluate: Evaluate) -> list[dict[str, str]]:
    """What every model is asked: the erased concept, the retained ones, a never-known one.

    The erased concept gets all its prompts (they are the clusters of the statistics), a retained
    concept its first, the never-known one its first two.
    """
    asked = [("erased", concept, prompt) for prompt in evaluate.prompts_for(base, concept)]
    for other in evaluate.retained(base, concept):
        asked.append(("retained", other, evaluate.prompts_for(base, other)[0]))
    if (stranger := base.never_known()) is not None:
        strange = evaluate.prompts_for(base, stranger)[:2]
        asked += [("never_known", stranger, prompt) for prompt in strange]
    return [{"role": role, "concept": of, "prompt": prompt} for role, of, prompt in asked]


def all_asked(grid: Grid, evaluate: Evaluate) -> list[Asked]:
    """The same in numbers, for each concept that the base knows."""
    known = grid.base.concepts()
    erased = [c for c in grid.all_concepts() if known is None or c in known]
    return [_in_numbers(grid.base, concept, evaluate) for concept in erased]


def _in_numbers(base: BasePlugin, concept: str, evaluate: Evaluate) -> Asked:
    prompts = Counter(probe["role"] for probe in probes(base, concept, evaluate))
    each = evaluate.sample.settings.images_per_prompt
    pictures = {role: each * count for role, count in prompts.items()}
    return Asked(evaluate.retained(base, concept), pictures)
