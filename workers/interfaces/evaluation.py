"""What an evaluation set is to the workers, and what sets share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from orchestrator.core.artifacts import ASKS_ERASED, Probe
from orchestrator.core.plugin import BasePlugin, EvaluationPlugin


class Evaluation(EvaluationPlugin):
    """Rows of role, concept, prompt and, if they have one of their own, noise seed."""


def fitting(rows: Iterable[Probe], base: BasePlugin, erased: tuple[str, ...]) -> Iterator[Probe]:
    """Those of a set's rows that a model is asked from which these concepts are erased.

    A row of the role "erased" or "synonym" is asked where its concept is erased, and one that
    should survive where it is not. Concepts are spelled as the sweep spells them, so that their
    scores stand together.
    """
    gone = {base.as_read(concept): concept for concept in erased}
    for row in rows:
        spelled = gone.get(base.as_read(row.concept))
        asks_erased = row.role in ASKS_ERASED
        if asks_erased and spelled is not None:
            yield replace(row, concept=spelled)
        elif row.role == "never_known" or (not asks_erased and spelled is None):
            yield row


def strangers(base: BasePlugin) -> list[Probe]:
    """The first two prompts of a concept that the base never knew, if it names one."""
    if (stranger := base.never_known()) is None:
        return []
    return [Probe("never_known", stranger, prompt) for prompt in base.prompts(stranger)[:2]]
