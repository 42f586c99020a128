"""Records -> a trial's numbers. Results, tracking and figures are three views of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from orchestrator.core.artifacts import (
    ASKS_ERASED,
    CONSTANT_PICTURES,
    IMAGES_DRAWN,
    KEPT,
    LOSSES,
    VALUES,
    LossRow,
    Role,
    ValueRow,
)
from orchestrator.core.errors import CorruptObject, StoreError
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, PlannedTrial, Waypoint
from orchestrator.results.groups import (
    ERASED,
    Group,
    GroupNumbers,
    GroupValues,
    numbers_of,
    worst_of,
)
from orchestrator.stats.intervals import Array
from orchestrator.stats.paired import Paired, model_ruined, unlearning_failed
from orchestrator.store.store import Record, Store

Status = Literal["done", "incomplete", "failed"]
BESIDE: tuple[Role, ...] = ("synonym", "retained", "related", "other")
"""The roles that have numbers of their own beside the erased concept's, where they are asked."""


@dataclass(frozen=True)
class Scores:
    """A model's means of the primary metric, by role; None where there is no record yet.

    `retained` is over what should survive: the role "retained", or where a set has none of it
    "other", or else "related" (`KEPT`).
    """

    erased: float | None = None
    retained: float | None = None
    never_known: float | None = None


@dataclass(frozen=True)
class Pictures:
    """What is odd about some models' pictures.

    Of `count` pictures `constant` are of one colour; of `judged` pictures of the erased concept
    `without_value` have no value of the primary metric; of `retained` concepts that were asked for
    `retained_lacking` have no score of it.
    """

    count: int = 0
    constant: int = 0
    judged: int = 0
    without_value: int = 0
    retained: int = 0
    retained_lacking: int = 0

    @property
    def retained_scored(self) -> int:
        """How many retained concepts have a score in every model."""
        return self.retained - self.retained_lacking


@dataclass(frozen=True)
class Measured:
    """A trial's numbers, as far as the store has them.

    `control` is the score after the same fine-tuning of the base without unlearning; None for a
    control itself. `metrics` holds the final model's other numbers as "<metric>.<name>",
    `base_metrics` and `unlearned_metrics` those of the other two; `groups` what is measured beside
    the erased concept as a whole: synonyms, what should survive, and each concept of several that
    are erased together.
    `seconds` is the work that the numbers rest on; what trials share counts in each.
    """

    planned: PlannedTrial
    status: Status
    base: Scores
    unlearned: Scores
    final: Scores
    control: float | None
    paired: Paired | None
    unlearning_failed: bool | None
    model_ruined: bool | None
    pictures: Pictures
    metrics: Mapping[str, float]
    seconds: float
    base_metrics: Mapping[str, float] = field(default_factory=dict)
    unlearned_metrics: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[GroupNumbers, ...] = ()

    @property
    def worst(self) -> GroupNumbers | None:
        """Of several concepts that are erased together, the one that came back the most."""
        return worst_of(self.groups)

    @property
    def is_final(self) -> bool:
        """Whether nothing more is to come: all stages are recorded, the control's too."""
        awaits_control = self.planned.control is not None and self.control is None
        return self.status == "done" and not awaits_control


@dataclass(frozen=True)
class Values:
    """A group's values: shape (prompts, images), NaN where a prompt has fewer images than others.

    `pairs` say which image each is, `clusters` of which concept each prompt, by number.
    """

    pairs: npt.NDArray[np.int64]
    values: Array
    clusters: tuple[int, ...]


class TrialReader:
    """Measures a plan's trials. Records are read once: they never change.

    What other processes commit is seen after `refresh`.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self._records: dict[str, Record] = {}
        self._values: dict[tuple[str, Group], Values] = {}
        self._measured: dict[str, Measured] = {}
        self._losses: dict[str, list[LossRow]] = {}
        self._pictured: dict[str, Pictures] = {}
        self._controls: dict[tuple[str | None, str], PlannedTrial] = {
            (trial.final.model.digest, trial.trial.concept): trial
            for trial in plan.trials
            if trial.is_control
        }
        self._keys: set[str] = set()
        self._failed: set[str] = set()
        self.refresh()

    def refresh(self) -> set[str]:
        """Look which stages have a record now, and which failed; keys of which that is new."""
        keys, failed = self._keys, self._failed
        self._keys = self.store.keys()
        if gone := keys - self._keys:
            self._forget(gone)
        self._failed = self.store.failures().keys() - self._keys
        return (keys ^ self._keys) | (failed ^ self._failed)

    def _forget(self, gone: set[str]) -> None:
        """Of records that were set aside, so that what is made in their place is read."""
        for key in gone:
            for known in (self._records, self._losses, self._pictured):
                known.pop(key, None)
        self._values = {at: values for at, values in self._values.items() if at[0] not in gone}
        self._measured.clear()

    def record(self, stage: Stage) -> Record | None:
        """The stage's record as of the last refresh."""
        if stage.key not in self._records and stage.key in self._keys:
            found = self.store.get(stage)
            if found is not None:
                self._records[stage.key] = found
            else:
                self._keys.discard(stage.key)  # damaged, and set aside
        return self._records.get(stage.key)

    def records(self, stages: Iterable[Stage]) -> Iterator[Record]:
        """Those of the stages that had one then."""
        return (record for stage in stages if (record := self.record(stage)) is not None)

    def measure(self, planned: PlannedTrial) -> Measured:
        """The trial's numbers; kept once nothing more is to come."""
        [measured] = self.measure_all([planned])
        return measured

    def all(self) -> list[Measured]:
        """The numbers of every trial, in the plan's order."""
        return self.measure_all(self.plan.trials)

    def measure_all(self, trials: Sequence[PlannedTrial]) -> list[Measured]:
        """The numbers of some trials: many at once cost much less than one by one."""
        new = [planned for planned in trials if planned.key not in self._measured]
        # First what reads files: a record that is found damaged counts as none in all that follows.
        values = [(planned.key, one) for planned in new for one in self._group_values(planned)]
        groups: dict[str, list[GroupNumbers]] = {planned.key: [] for planned in new}
        numbers = numbers_of([one for _, one in values])
        for (key, _), one in zip(values, numbers, strict=True):
            groups[key].append(one)
        found = {planned.key: self._measure(planned, groups[planned.key]) for planned in new}
        self._measured |= {key: one for key, one in found.items() if one.is_final}
        self.store.flush()
        return [found.get(planned.key) or self._measured[planned.key] for planned in trials]

    def _measure(self, planned: PlannedTrial, groups: Sequence[GroupNumbers]) -> Measured:
        seconds = sum(record.seconds for record in self.records(planned.stages()))
        base, unlearned, final = (
            self.scores(point) for point in (planned.base, planned.unlearned, planned.final)
        )
        control = self._controls.get((planned.control, planned.trial.concept))
        failed = False if planned.is_control else None
        if failed is None and base.erased is not None and unlearned.erased is not None:
            failed = unlearning_failed(base.erased, unlearned.erased)
        ruined = False if planned.is_control else None
        if ruined is None and base.retained is not None and unlearned.retained is not None:
            ruined = model_ruined(base.retained, unlearned.retained)
        keys = {stage.key for stage in planned.stages()}
        is_failed = not keys.isdisjoint(self._failed)
        status: Status = "done" if keys <= self._keys else "failed" if is_failed else "incomplete"
        return Measured(
            planned=planned,
            status=status,
            base=base,
            unlearned=unlearned,
            final=final,
            control=self.scores(control.final).erased if control else None,
            paired=next((one.paired for one in groups if one.group == ERASED), None),
            unlearning_failed=failed,
            model_ruined=ruined,
            pictures=self.pictures([planned]),
            metrics=self._metrics(planned.final),
            seconds=seconds,
            base_metrics=self._metrics(planned.base),
            unlearned_metrics=self._metrics(planned.unlearned),
            groups=tuple(one for one in groups if one.group != ERASED),
        )

    def scores(self, point: Waypoint) -> Scores:
        """The primary metric's means over each role."""
        stage = point.primary
        record = self.record(stage) if stage else None
        found = record.metrics if record else {}
        kept = found.get(kept_role(point))
        return Scores(found.get("erased"), kept, found.get("never_known"))

    def _metrics(self, point: Waypoint) -> dict[str, float]:
        """The model's other numbers as "<metric>.<name>"."""
        metrics: dict[str, float] = {}
        for label, stage in labelled_scores(point):
            record = self.record(stage)
            shown = get_args(Role) if stage is point.primary else ()
            for name, value in (record.metrics if record else {}).items():
                if name not in shown:
                    metrics[f"{label}.{name}"] = value
        return metrics

    def values(self, point: Waypoint) -> Array | None:
        """The primary metric of the erased concept's images: shape (prompts, images)."""
        found = self.group(point, ERASED)
        return None if found is None else found.values

    def pictures(self, trials: Iterable[PlannedTrial]) -> Pictures:
        """What is odd about the pictures of the trials' models, each model's counted once."""
        points = {p.sample: p for t in trials for p in (t.base, t.unlearned, t.final)}
        found = [self._pictures(point) for point in points.values()]
        return Pictures(
            count=sum(one.count for one in found),
            constant=sum(one.constant for one in found),
            judged=sum(one.judged for one in found),
            without_value=sum(one.without_value for one in found),
            retained=max((one.retained for one in found), default=0),
            retained_lacking=max((one.retained_lacking for one in found), default=0),
        )

    def _pictures(self, point: Waypoint) -> Pictures:
        if point.sample.key in self._pictured:
            return self._pictured[point.sample.key]
        drawn, values = self.record(point.sample), self.values(point)
        scored = self.record(point.primary) if point.primary else None
        role = kept_role(point)
        asked = {p["concept"] for p in point.sample.settings["probes"] if p["role"] == role}
        # A metric need not tell concepts apart.
        of = f"{role}."
        told = [name for name in (scored.metrics if scored else ()) if name.startswith(of)]
        there = {name.removeprefix(of) for name in told} if told else asked
        found = Pictures(
            count=int(drawn.metrics.get(IMAGES_DRAWN, 0)) if drawn else 0,
            constant=int(drawn.metrics.get(CONSTANT_PICTURES, 0)) if drawn else 0,
            judged=0 if values is None else values.size,
            without_value=0 if values is None else int(np.isnan(values).sum()),
            retained=len(asked),
            retained_lacking=len(asked - there),
        )
        if drawn and (scored or not point.primary):
            self._pictured[point.sample.key] = found
        return found

    def losses(self, record: Record) -> list[LossRow]:
        """A fine-tune's loss at each optimiser step; empty if it kept none."""
        if record.key not in self._losses:
            found: list[LossRow] = []
            if LOSSES.name in record.objects:
                with self._unless_damaged(record):
                    found = self.store.rows(record, LOSSES)
            self._losses[record.key] = found
        return self._losses[record.key]

    def _group_values(self, planned: PlannedTrial) -> Iterator[GroupValues]:
        """Of the erased concept as a whole and of what is measured beside it, if it is there."""
        for group in (ERASED, *groups_of(planned.final)):
            if (known := self._three(planned, group)) is not None:
                base, unlearned, final = (one.values[None] for one in known)
                clusters = known[0].clusters if group.is_sample else None
                models = (base, unlearned, final)
                yield GroupValues(group, models, None, clusters, is_unchanged(planned))

    def _three(self, planned: PlannedTrial, group: Group) -> list[Values] | None:
        """The group's values on the three models; None unless all have some."""
        points = (planned.base, planned.unlearned, planned.final)
        found = [self.group(point, group) for point in points]
        known = [values for values in found if values is not None]
        if len(known) < len(found):
            return None
        if any(not np.array_equal(known[0].pairs, other.pairs) for other in known[1:]):
            keys = ", ".join(stage.key for point in points if (stage := point.primary))
            raise StoreError(
                f"the scores of trial {planned.key} are of different images: {keys}; their metric "
                "must keep the order"
            )
        if not all(np.isfinite(values.values).any() for values in known):
            return None  # a metric that has no value of any picture
        return known

    @contextmanager
    def _unless_damaged(self, record: Record) -> Iterator[None]:
        """A record whose file is damaged, which the store has set aside, is as good as none."""
        try:
            yield
        except CorruptObject:
            self._records.pop(record.key, None)
            self._keys.discard(record.key)

    def group(self, point: Waypoint, group: Group) -> Values | None:
        """The primary metric of a group's images; None if there is no record yet."""
        stage = point.primary
        record = self.record(stage) if stage else None
        if stage is None or record is None:
            return None
        if (stage.key, ERASED) not in self._values:
            with self._unless_damaged(record):
                every = self.store.rows(record, VALUES)
            if stage.key not in self._keys:
                return None
            needed = {ERASED, *groups_of(point)}
            for one in scored_groups(point):  # the file is read once
                rows = [row for row in every if one.has(row)]
                if rows or one in needed:
                    self._values[stage.key, one] = _values_of(rows, record.key, one)
        return self._values.get((stage.key, group))


def _values_of(rows: list[ValueRow], key: str, group: Group) -> Values:
    """By prompt: rows that ask the same of one concept, from other noise, are one prompt."""
    rows.sort(key=lambda row: (row.prompt_index, row.image_index))
    prompts = len({row.prompt_index for row in rows})
    if prompts == 0 or len(rows) % prompts:
        what = "the erased concept" if group == ERASED else repr(group.name)
        raise StoreError(
            f"score {key} must have as many images for every prompt of {what} but has "
            f"{len(rows)} images of {prompts} prompts"
        )
    asked: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        asked.setdefault((row.concept, row.prompt), []).append(row.value)
    values = np.full((len(asked), max(map(len, asked.values()))), np.nan)
    for line, some in zip(values, asked.values(), strict=True):
        line[: len(some)] = some
    concepts = list(dict.fromkeys(concept for concept, _ in asked))
    clusters = tuple(concepts.index(concept) for concept, _ in asked)
    pairs = np.array([(row.prompt_index, row.image_index) for row in rows])
    return Values(pairs, values, clusters)


def kept_role(point: Waypoint) -> Role:
    """The role of what should survive, by which a model's health is told."""
    asked = {probe["role"] for probe in point.sample.settings["probes"]}
    return next((role for role in KEPT if role in asked), KEPT[0])


def groups_of(point: Waypoint) -> list[Group]:
    """What is measured of a model beside the erased concept as a whole."""
    concepts: dict[str, dict[str, None]] = {}
    for probe in point.sample.settings["probes"]:
        concepts.setdefault(probe["role"], {})[probe["concept"]] = None
    erased = concepts.get("erased", {})
    found = [Group("erased", concept) for concept in erased] if len(erased) > 1 else []
    return [*found, *(Group(role) for role in BESIDE if role in concepts)]


def scored_groups(point: Waypoint) -> list[Group]:
    """All that a model's score can be told of: the erased concepts together and one by one, and
    every other role that it was asked for; synonyms of several concepts one by one as well.
    """
    asked: dict[Role, dict[str, None]] = {"erased": {}}
    for probe in point.sample.settings["probes"]:
        asked.setdefault(probe["role"], {})[probe["concept"]] = None
    found = []
    for role in (role for role in get_args(Role) if role in asked):
        each = asked[role] if role in ASKS_ERASED and len(asked[role]) > 1 else ()
        found += [Group(role), *(Group(role, concept) for concept in each)]
    return found


def is_unchanged(planned: PlannedTrial) -> bool:
    """Whether the final model is the unlearned one: 0 steps, so 0 resurgence by construction."""
    return planned.final.sample == planned.unlearned.sample


def labelled_scores(point: Waypoint) -> Iterator[tuple[str, Stage]]:
    """A point's scores with their metrics' names; a second one of a name gets "_2"."""
    seen: Counter[str] = Counter()
    for stage in point.scores:
        seen[stage.plugin] += 1
        count = seen[stage.plugin]
        yield (stage.plugin if count == 1 else f"{stage.plugin}_{count}"), stage
