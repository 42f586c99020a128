"""What a group of a model's pictures says on the base, the unlearned and the final model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.artifacts import KEPT, Role, ValueRow
from orchestrator.stats.intervals import Array
from orchestrator.stats.paired import (
    Estimate,
    Paired,
    changes,
    mean_intervals,
    paired_intervals,
    unchanged,
)

AT_ONCE = 256
"""So many are computed at once: many enough that their number does not matter, few enough that
their values are a few megabytes."""


@dataclass(frozen=True)
class Group:
    """Some of the pictures that a model is asked: a role's, or those of one concept of it."""

    role: Role
    concept: str | None = None

    @property
    def name(self) -> str:
        """As columns begin with it."""
        return self.role if self.concept is None else f"{self.role}.{self.concept}"

    @property
    def is_sample(self) -> bool:
        """Whether its concepts stand for others of their kind, as prompts do for other prompts."""
        return self.role in KEPT and self.concept is None

    def has(self, row: ValueRow) -> bool:
        """Whether a picture is one of it."""
        return row.role == self.role and self.concept in (None, row.concept)


ERASED = Group("erased")
"""What resurgence is defined on."""


@dataclass(frozen=True)
class GroupNumbers:
    """A group's means on the three models, what came back and what unlearning took.

    `lost` is base - unlearned, paired by image: of other concepts, the interference. `after` is
    `final` with its interval.
    """

    group: Group
    base: float
    unlearned: float
    final: float
    paired: Paired
    lost: Estimate
    after: Estimate


@dataclass(frozen=True)
class GroupValues:
    """A group's values on the three models, each of shape (seeds, prompts, images).

    `shares` says whether they are 0 or 1, or means of such; None: look them up. `clusters` are
    which prompts are of one concept, where concepts are a sample of others. `has_no_edit` says that
    the final model is the unlearned one.
    """

    group: Group
    models: tuple[Array, Array, Array]
    shares: bool | None
    clusters: tuple[int, ...] | None
    has_no_edit: bool


def numbers_of(groups: Sequence[GroupValues]) -> list[GroupNumbers]:
    """In their order. Those whose values have one shape are computed at once."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, one in enumerate(groups):
        shapes = tuple(values.shape for values in one.models)
        alike.setdefault((shapes, one.clusters, one.shares is None), []).append(i)
    found: dict[int, GroupNumbers] = {}
    for places in alike.values():
        for first in range(0, len(places), AT_ONCE):
            some = places[first : first + AT_ONCE]
            found |= zip(some, _numbers_of([groups[i] for i in some]), strict=True)
    return [found[i] for i in range(len(groups))]


def _numbers_of(alike: Sequence[GroupValues]) -> list[GroupNumbers]:
    base, unlearned, final = (np.stack([one.models[m] for one in alike]) for m in range(3))
    known = [one.shares for one in alike if one.shares is not None]
    shares, clusters = np.array(known) if known else None, alike[0].clusters
    paired = paired_intervals(base, unlearned, final, shares, clusters)
    lost = changes(unlearned, base, shares, clusters)
    after = mean_intervals(final, shares, clusters)
    means = [
        [float(mean) for mean in np.nanmean(values.reshape(len(alike), -1), axis=1)]
        for values in (base, unlearned, final)
    ]
    return [
        GroupNumbers(
            group=one.group,
            base=means[0][i],
            unlearned=means[1][i],
            final=means[2][i],
            paired=unchanged(paired[i]) if one.has_no_edit else paired[i],
            lost=lost[i],
            after=after[i],
        )
        for i, one in enumerate(alike)
    ]


def group_columns(groups: Iterable[GroupNumbers]) -> dict[str, float | str | None]:
    """The numbers by column: "synonym_final", "other_lost_low", "erased.star_resurgence".

    An interval's end is None where too little was measured for one.
    """
    groups, found = list(groups), dict[str, float | str | None]()
    for one in groups:
        estimates = {"resurgence": one.paired.resurgence, "recovery": one.paired.recovery}
        means = {"base": one.base, "unlearned": one.unlearned, "final": one.final}
        if one.group.role != "retained":  # which has columns of these names in any case
            found |= {f"{one.group.name}_{name}": value for name, value in means.items()}
        found |= _ends(f"{one.group.name}_final", one.after)
        for name, estimate in (estimates | {"lost": one.lost}).items():
            found |= interval_columns(f"{one.group.name}_{name}", estimate)
    if (worst := worst_of(groups)) is not None:
        found["worst_concept"] = worst.group.concept
        found |= interval_columns("worst_resurgence", worst.paired.resurgence)
    return found


def interval_columns(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """A value and the ends of its interval, null where there is none."""
    if estimate is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: estimate.value, **_ends(name, estimate)}


def _ends(name: str, estimate: Estimate) -> dict[str, float | None]:
    ends = ((f"{name}_low", estimate.low), (f"{name}_high", estimate.high))
    return {end: value if math.isfinite(value) else None for end, value in ends}


def worst_of(groups: Iterable[GroupNumbers]) -> GroupNumbers | None:
    """Of several concepts that are erased together, the one that came back the most."""
    each = [one for one in groups if one.group.role == "erased"]
    return max(each, key=lambda one: one.paired.resurgence.value, default=None)
