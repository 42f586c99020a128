"""Trial: one grid point with its validated edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.digest import canonical_json
from orchestrator.core.plugin import Plugin

Scalar = str | int | float | bool | None
EditKind = Literal["unlearn", "finetune", "merge"]


def scalar(value: Any) -> Scalar:
    """The value as a parameter; a list or a mapping as its JSON."""
    return canonical_json(value) if isinstance(value, list | dict) else value


@dataclass(frozen=True)
class Edit:
    """One change of a model with every setting chosen.

    `key` is how a sweep file and the results speak of it: "unlearn", "finetune", "merge", and from
    the second of a kind on "finetune_2". `plugin` is the unlearner, the update that is merged, or
    the recipe "finetune", which then comes with the `dataset` it trains on.
    """

    key: str
    kind: EditKind
    plugin: Plugin
    dataset: Plugin | None = None


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
