"""Every model that a trial comes through, scored: after each erasure and each fine-tune.

A trial's own numbers compare three models, the base, the unlearned and the final one. Where a set
is erased one concept after another there are more between them, and each is drawn and scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.core.concepts import concepts_of, joined
from orchestrator.core.stage import Stage
from orchestrator.core.text import number, one_line
from orchestrator.plan.plan import Plan, PlannedTrial, Waypoint
from orchestrator.results.groups import ERASED, Group
from orchestrator.results.measure import TrialReader, Values, scored_groups
from orchestrator.stats.intervals import are_shares
from orchestrator.stats.paired import Estimate, mean_interval
from orchestrator.store.store import Store
from orchestrator.sweep.trial import Scalar


@dataclass(frozen=True)
class Passage:
    """A model on a trial's way.

    `position` counts the models from the base, which is 0. One that is `aside` is not passed
    through: a concept was erased in it alone, and what that changed is added at `position`.
    `erased` are the concepts that were erased to make it.
    """

    position: int
    label: str
    aside: bool
    erased: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its label, and that it lies aside."""
        return f"{self.label}, alone" if self.aside else self.label

    @property
    def prefix(self) -> str:
        """What MLflow's names of its scores begin with."""
        return "alone" if self.aside else "way"


@dataclass(frozen=True)
class Point:
    """A passage with its scores, means over seeds with their 95% intervals.

    `replicates` are its different models: a method without randomness gives all seeds one.
    """

    passage: Passage
    scores: Mapping[Group, Estimate]
    replicates: int

    def score(self, group: Group = ERASED) -> Estimate | None:
        """That of a group; None if it was not asked for or has no record yet."""
        return self.scores.get(group)


@dataclass(frozen=True)
class Chain:
    """A setting's models from the base on; all step counts of its last fine-tune are in it.

    `params` are the setting's without the seed and those steps.
    """

    params: Mapping[str, Scalar]
    is_control: bool
    points: tuple[Point, ...]


def passages(planned: PlannedTrial) -> list[tuple[Passage, Waypoint]]:
    """The trial's models, in the order in which they are made; the base first."""
    every = (planned.base, *planned.way, planned.unlearned, planned.final)
    points = {point.model.digest: point for point in every}
    passed = [stage for stage in reversed([*planned.final.model.ancestry()]) if stage.is_model]
    found = []
    for stage in (passed[0], *planned.final.model.lineage):
        if stage.digest in points:
            by = next(one for one in passed if stage == one or stage in one.lineage)
            passage = Passage(passed.index(by), _label(stage), stage not in passed, _erased(stage))
            found.append((passage, points[stage.digest]))
    return found


def chains(plan: Plan, store: Store, reader: TrialReader | None = None) -> list[Chain]:
    """The sweep's, controls last; seeds taken together as far as the store has them."""
    reader = reader or TrialReader(plan, store)
    groups: dict[tuple[object, ...], list[PlannedTrial]] = {}
    for planned in plan.trials:
        params = _params(planned).items()
        groups.setdefault((planned.is_control, *params), []).append(planned)
    found = [
        Chain(_params(trials[0]), trials[0].is_control, tuple(_points(reader, trials)))
        for trials in groups.values()
    ]
    return sorted((one for one in found if one.points), key=lambda one: one.is_control)


def means_of(reader: TrialReader, waypoint: Waypoint) -> dict[str, float]:
    """A model's score of each group that it was asked for and has values of."""
    found = {group: reader.group(waypoint, group) for group in scored_groups(waypoint)}
    return {
        group.name: float(np.nanmean(of.values))
        for group, of in found.items()
        if of is not None and np.isfinite(of.values).any()
    }


def way_columns(reader: TrialReader, planned: PlannedTrial) -> dict[str, float | str]:
    """The models between those that the trial's numbers compare, and their scores, by column:
    "way_1" is what the first is, "way_1_erased.star" a score of it.
    """
    found: dict[str, float | str] = {}
    between = {point.model for point in planned.way}
    way = [pair for pair in passages(planned) if pair[1].model in between] if between else []
    for n, (passage, waypoint) in enumerate(way, 1):
        found[f"way_{n}"] = passage.name
        found |= {f"way_{n}_{name}": one for name, one in means_of(reader, waypoint).items()}
    return found


def _params(planned: PlannedTrial) -> dict[str, Scalar]:
    """What the trials of a chain have in common."""
    apart = ("seed", planned.steps_param)
    return {name: value for name, value in planned.trial.params.items() if name not in apart}


def _points(reader: TrialReader, trials: Sequence[PlannedTrial]) -> Iterator[Point]:
    """In the order of the way, fewer steps before more; those of which nothing is known are left
    out.
    """
    made: dict[Passage, dict[str, Waypoint]] = {}
    for planned in sorted(trials, key=lambda one: one.steps):
        for passage, waypoint in passages(planned):
            made.setdefault(passage, {})[waypoint.sample.digest] = waypoint
    for passage, waypoints in made.items():
        scores = dict(_scores(reader, list(waypoints.values())))
        if scores:
            scored = sum(reader.group(one, ERASED) is not None for one in waypoints.values())
            yield Point(passage, scores, scored)


def _scores(
    reader: TrialReader, replicates: Sequence[Waypoint]
) -> Iterator[tuple[Group, Estimate]]:
    """Of each group that was asked for, over the models of one passage."""
    for group in scored_groups(replicates[0]):
        found = [values for one in replicates if (values := reader.group(one, group)) is not None]
        if found and all(np.isfinite(one.values).any() for one in found):
            yield group, score_of(group, found)


def score_of(group: Group, models: Sequence[Values]) -> Estimate:
    """The mean of a group's pictures of one model a seed, with its interval."""
    values = np.stack([one.values for one in models])
    clusters = models[0].clusters if group.is_sample else None
    return mean_interval(values, bool(are_shares(values).all()), clusters)


def _erased(stage: Stage) -> tuple[str, ...]:
    """The concepts that were erased on the way to a model, in order."""
    unlearned = (one for one in stage.lineage if one.kind == "unlearn")
    return tuple(dict.fromkeys(c for one in unlearned for c in concepts_of(one.settings)))


def _label(stage: Stage) -> str:
    """What was done last, in a few words."""
    if stage.kind == "base":
        return "base"
    if stage.kind == "merge" and "donor" in stage.inputs:
        return f"{_label(stage.inputs['donor'])}, added"
    if stage.kind == "unlearn":
        return f"{stage.plugin} {one_line(joined(concepts_of(stage.settings)))}"
    if stage.kind == "finetune":
        return f"{stage.settings['dataset']['name']} {stage.steps} steps"
    settings: Iterable[tuple[str, object]] = stage.identity["settings"].items()
    return " ".join(["merge", stage.plugin, *(f"{k}={number(v)}" for k, v in settings)])
