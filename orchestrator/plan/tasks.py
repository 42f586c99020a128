"""The plan's tree -> worker tasks: which stages run back to back with the model in memory.

A trajectory (one fine-tuning recipe, all its step counts) is one task: train to 50, sample, score,
train on to 100, … An unlearning with several children is a task of its own; each child becomes
ready when the unlearning's record is there. An only child runs on in its parent's task. Materials
(a chain of them, such as pictures and their masks) and data sets are tasks too; what reads them
waits for them. Where there are workers for scores, judging a model's pictures is a task as well.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.concepts import targets_of
from orchestrator.core.plugin import UnlearnerPlugin
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage, StageKind
from orchestrator.messages import PoolName, Task
from orchestrator.plan.plan import Plan

_ORDER: dict[StageKind, int] = {
    "base": 0,
    "prepare": 0,
    "unlearn": 1,
    "finetune": 1,
    "merge": 1,
    "sample": 2,
    "score": 3,
}
_KEPT: dict[str, tuple[StageKind, ...]] = {
    "unlearned": ("unlearn",),
    "finetuned": ("finetune", "merge"),
}
"""Whose weights stay, by the sweep's word for it."""


@dataclass
class _Group:
    """A task in the making: all stages that hang on one model, or on one trajectory's models."""

    id: str
    parent: Stage | None
    stages: list[Stage] = field(default_factory=list)
    pool: PoolName = "model"

    def last_model(self) -> Stage | None:
        models = [stage for stage in self.stages if stage.is_model]
        return models[-1] if models else None


def make_tasks(
    plan: Plan, done: Collection[str], keep: Collection[str], has_score_workers: bool = False
) -> tuple[Task, ...]:
    """The tasks for every stage whose 16-digit key is not in `done`, longest path first.

    What another task is doing may count as done: what reads it waits for its record.
    """
    apart = {s: None for s in plan.stages if has_score_workers and _judged(s)}
    groups = _merge_only_children(_group(s for s in plan.stages if s not in apart))
    groups += _score_groups(apart)
    pending = {
        group.id: [stage for stage in group.stages if stage.key not in done] for group in groups
    }
    live = [group for group in groups if pending[group.id]]
    after = {g.id: _after(pending[g.id]) if g.pool == "model" else None for g in live}
    needed = {model.digest for model in after.values() if model is not None}
    needed |= {i.digest for g in live for i in _inputs(pending[g.id]) if i.is_model}
    kept_kinds = {kind for name in keep for kind in _KEPT.get(name, ())}
    kept = {
        stage.digest
        for stage in plan.stages
        if ("unlearn" if stage.unlearns else stage.kind) in kept_kinds
    }
    saved = needed | kept
    costs = _path_costs(live, pending)
    tasks = [
        Task(
            # Named after what is left to do: two trainings that begin from the same unlearned model
            # are two tasks, also where each is the only one in its plan.
            id=group.id if group.pool == "score" else _name(pending[group.id][0]),
            stages=tuple(pending[group.id]),
            after=after[group.id],
            save=frozenset(s.digest for s in pending[group.id] if s.digest in saved),
            keep_checkpoints="checkpoints" in keep,
            path_cost=costs[group.id],
            inputs=_inputs(pending[group.id]),
            pool=group.pool,
            judges=tuple(s for s in apart if s.parent in pending[group.id] and s.key not in done),
        )
        for group in live
    ]
    return tuple(sorted(tasks, key=lambda task: (-task.path_cost, not _is_data(task.stages))))


def _after(stages: Sequence[Stage]) -> Stage | None:
    """The model that the first stage begins from and that these do not make; None for the base."""
    outside = (s for s in stages[0].ancestry() if s.is_model and s not in stages)
    model = next(outside)
    return model if model.kind != "base" else None


def _inputs(stages: list[Stage]) -> tuple[Stage, ...]:
    """The materials and pictures that these stages read and do not make."""
    read = (i for s in stages for i in (*s.inputs.values(), *_judged(s)))
    return tuple(dict.fromkeys(i for i in read if i not in stages))


def _judged(stage: Stage) -> tuple[Stage, ...]:
    """The pictures that a score is about."""
    is_pictures = stage.kind == "score" and stage.parent and stage.parent.kind == "sample"
    return (stage.parent,) if is_pictures and stage.parent else ()


def _score_groups(scores: Iterable[Stage]) -> list[_Group]:
    """One group for each model's pictures, to be judged where no model is."""
    groups: dict[str, _Group] = {}
    for score in scores:
        (pictures,) = _judged(score)
        empty = _Group(pictures.digest[:16], None, pool="score")
        groups.setdefault(pictures.digest, empty).stages.append(score)
    return list(groups.values())


def _group(stages: Iterable[Stage]) -> list[_Group]:
    """One group a trajectory, an unlearning, a chain of materials, or the base's evaluation."""
    groups: dict[str, _Group] = {}
    for stage in stages:
        head = _head(stage)
        parent = head.parent if head.parent and head.parent.kind != "base" else None
        name = _name(stage)
        groups.setdefault(name, _Group(name, parent)).stages.append(stage)
    for group in groups.values():
        group.stages.sort(key=lambda s: (s.model.steps, _ORDER[s.kind]))
    return list(groups.values())


def _name(stage: Stage) -> str:
    """16 digits of the trajectory, the model or the materials that a stage belongs to."""
    head = _head(stage)
    return (head.trajectory or head.digest)[:16]


def _head(stage: Stage) -> Stage:
    """The stage that a group is named after: its model, or the first of a chain of materials."""
    if stage.kind != "prepare":
        return stage.model
    while stage.parent is not None and stage.parent.kind == "prepare":
        stage = stage.parent
    return stage


def _merge_only_children(groups: list[_Group]) -> list[_Group]:
    """Append a group to the one that it hangs on where it is the only one to do so."""
    children: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        if group.parent is not None:
            children[group.parent.digest].append(group)
    merged: set[str] = set()
    for group in groups:
        if group.id in merged:
            continue
        while (last := group.last_model()) and len(only := children[last.digest]) == 1:
            # Where an input is there only when some edit is, the child must be free to wait for it
            # while this group runs on; data sets are there from the start.
            if any(
                i.is_model or (i.kind == "prepare" and i.model.kind != "base")
                for i in _inputs(only[0].stages)
            ):
                break
            group.stages.extend(only[0].stages)
            merged.add(only[0].id)
    return [group for group in groups if group.id not in merged]


def _path_costs(groups: list[_Group], pending: dict[str, list[Stage]]) -> dict[str, float]:
    """Each group's cost with its dearest chain of children.

    Data sets go first: they are short, and what is wrong with one should be known before anything
    is computed. Then the base's evaluation: no trial has a number before it.
    """
    holder = {stage.digest: group.id for group in groups for stage in pending[group.id]}
    below: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        if group.parent is not None and group.parent.digest in holder:
            below[holder[group.parent.digest]].append(group)
        awaited = _inputs(pending[group.id])
        for needed in {holder[s.digest] for s in awaited if s.digest in holder}:
            below[needed].append(group)
    costs: dict[str, float] = {}

    def cost(group: _Group) -> float:
        if group.id not in costs:
            is_evaluation = any(s.kind == "sample" for s in group.stages) and not group.last_model()
            goes_first = is_evaluation or _is_data(group.stages)
            own = math.inf if goes_first else _own_cost(pending[group.id])
            costs[group.id] = own + max((cost(child) for child in below[group.id]), default=0.0)
        return costs[group.id]

    for group in groups:
        cost(group)
    return costs


def _is_data(stages: Iterable[Stage]) -> bool:
    return all(stage.kind == "prepare" and "dataset" in stage.settings for stage in stages)


def unlearning_passes(name: str, settings: Mapping[str, Any]) -> int:
    """UNet passes of an unlearning with a stage's settings, over all that it erases."""
    cls = find("unlearner", name)
    assert issubclass(cls, UnlearnerPlugin)
    times = len(targets_of(settings)) if cls.trains_each else 1
    return times * cls(cls.Settings.model_validate(settings["settings"])).passes()


def _own_cost(stages: Iterable[Stage]) -> float:
    """Cost in training steps. Rough: it orders the queue, nothing else depends on it."""
    longest: dict[str, int] = {}
    total = 0.0
    for stage in stages:
        if stage.trajectory:
            longest[stage.trajectory] = max(longest.get(stage.trajectory, 0), stage.steps)
        elif stage.kind == "unlearn":
            # A training step is a batch of 16, each three passes over a latent.
            total += max(10.0, unlearning_passes(stage.plugin, stage.settings) / (3 * 16))
        elif stage.kind == "sample":
            total += len(stage.settings["probes"])
        elif stage.kind == "prepare":
            total += len(stage.settings.get("prompts", ()))
    return total + sum(longest.values())
