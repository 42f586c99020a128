"""Trial: one grid point with its validated edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.digest import canonical_json
from orchestrator.core.plugin import Plugin
from orchestrator.core.settings import Settings

Scalar = str | int | float | bool | None
EditKind = Literal["unlearn", "finetune", "merge"]
Order = Literal["simultaneous", "continual", "independent"]


def scalar(value: Any) -> Scalar:
    """The value as a parameter; a list or a mapping as its JSON."""
    return canonical_json(value) if isinstance(value, list | dict) else value


class UnlearnSettings(Settings):
    """What an unlearning can be told beside its method; `concepts` is read as the sweep's are."""

    order: Order = Field(
        "simultaneous",
        description="how several concepts are erased: simultaneous: jointly; continual: one after "
        "another, each from the model that the last one left; independent: each from the same "
        "model, and their changes added",
    )


@dataclass(frozen=True)
class Edit:
    """One change of a model with every setting chosen.

    `key` is how a sweep file and the results speak of it: "unlearn", "finetune", "merge", and from
    the second of a kind on "finetune_2". `plugin` is the unlearner, the update that is merged, or
    the recipe "finetune", which then comes with the `dataset` it trains on. An unlearner erases its
    own `concepts`, or else all that the trial erases, in some `order`.
    """

    key: str
    kind: EditKind
    plugin: Plugin
    dataset: Plugin | None = None
    concepts: ConceptSet | None = None
    order: Order = "simultaneous"

    def erases(self, trial: ConceptSet) -> tuple[ConceptSet, ...]:
        """What its unlearnings erase, one after another: a set that is erased jointly, or each of
        its concepts.
        """
        own = trial if self.concepts is None else self.concepts.within(trial)
        return (own,) if self.order == "simultaneous" else own.apart()


@dataclass(frozen=True)
class Trial:
    """A value for every axis.

    `params` holds the flat values that name the point: "concept", "seed", "unlearn.method",
    "finetune.dataset", "finetune.steps", "unlearn.esd.group", … Edits of 0 fine-tuning steps
    stay in `edits`; the plan leaves them out. `erased` is what the unlearning erases and what is
    scored.
    """

    erased: ConceptSet
    edits: tuple[Edit, ...]
    seed: int
    params: Mapping[str, Scalar]

    @property
    def concept(self) -> str:
        """The name of what is erased: of a concept, or of a set of them."""
        return self.erased.name
