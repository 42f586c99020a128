"""Trials -> settings: seeds as replicates, ranked by resurgence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from orchestrator.core.artifacts import Role
from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.text import number
from orchestrator.plan.plan import Plan
from orchestrator.results.groups import (
    ERASED,
    Group,
    GroupNumbers,
    GroupValues,
    numbers_of,
    worst_of,
)
from orchestrator.results.measure import (
    Measured,
    Pictures,
    TrialReader,
    groups_of,
    is_unchanged,
    kept_role,
)
from orchestrator.stats.intervals import Array, are_shares
from orchestrator.stats.paired import ALPHA, MAX_RETAINED_LOSS, Paired, holm
from orchestrator.store.store import Store
from orchestrator.sweep.trial import Scalar

Key = Callable[[Measured], tuple[object, ...]]


@dataclass(frozen=True)
class Aggregate:
    """A setting: the means over its seeds. What no seed has a record of yet is None.

    `is_tuned` says whether some fine-tune came after the unlearning; `steps` are the last one's.
    `paired` holds resurgence and recovery with intervals over the trials that are scored, which are
    `scored` of `planned`. `seeds_scored` of `seeds_planned` have all their trials scored, and
    `controls_scored` of `controls_planned` trials that have a control have its score.
    `unlearning_failed` counts the trials whose unlearning never worked, `model_ruined` those where
    it took what should have stayed too: with any, the setting ranks behind those that have
    something to bring back, and has no `p_holm`. `p_holm` is Holm's p-value of its resurgence among
    the settings that are ranked. `groups` are synonyms, related and other concepts, and each
    concept of several that are erased together.
    """

    params: Mapping[str, Scalar]
    is_control: bool
    is_tuned: bool
    steps: int
    planned: int
    scored: int
    failed: int
    unlearning_failed: int
    model_ruined: int
    seeds_planned: int
    seeds_scored: int
    controls_planned: int
    controls_scored: int
    without_score: int
    pictures: Pictures
    base: float | None
    unlearned: float | None
    final: float | None
    control: float | None
    retained: float | None
    never_known: float | None
    paired: Paired | None
    p_holm: float | None
    resurgence_by_seed: tuple[float, ...]
    final_low: float | None
    final_high: float | None
    groups: tuple[GroupNumbers, ...] = ()

    @property
    def worst(self) -> GroupNumbers | None:
        """Of several concepts that are erased together, the one that came back the most."""
        return worst_of(self.groups)

    def of_role(self, role: Role) -> GroupNumbers | None:
        """The numbers of a role as a whole, if it was asked for."""
        return next((one for one in self.groups if one.group == Group(role)), None)

    @property
    def resurgence(self) -> float | None:
        """Mean resurgence."""
        return self.paired.resurgence.value if self.paired else None

    @property
    def is_sound(self) -> bool:
        """Whether unlearning worked in every trial, and left the rest of the model alone."""
        return not (self.unlearning_failed or self.model_ruined)

    @property
    def is_ranked(self) -> bool:
        """Whether it is a candidate for the largest resurgence."""
        is_candidate = self.is_tuned and not self.is_control
        return is_candidate and self.paired is not None and self.is_sound

    @property
    def is_clear(self) -> bool:
        """Whether something came back, beyond chance among all settings that are ranked."""
        return self.p_holm is not None and self.p_holm < ALPHA and (self.resurgence or 0.0) > 0

    @property
    def seeds(self) -> str:
        """'3', or '2 of 3' where the means are over fewer than there should be."""
        if self.seeds_scored == self.seeds_planned:
            return str(self.seeds_planned)
        return f"{self.seeds_scored} of {self.seeds_planned}"

    def flags(self) -> Iterator[str]:
        """What whoever reads its numbers must know, in a few words each."""
        if self.unlearning_failed:
            yield f"unlearning failed ({self.unlearning_failed} of {self.planned})"
        if self.model_ruined:
            yield f"model ruined ({self.model_ruined} of {self.planned})"
        if self.failed:
            yield f"{self.failed} failed"
        if self.without_score:
            yield f"{self.without_score} without a score"
        missing = self.planned - self.scored - self.failed - self.without_score
        if missing > 0:
            yield f"{missing} of {self.planned} trials to come"
        if 0 < self.controls_scored < self.controls_planned:
            yield f"control of {self.controls_scored} of {self.controls_planned}"
        if self.paired and not self.paired.resurgence.has_interval:
            yield "too few values for an interval"
        odd = self.pictures
        if odd.retained_lacking:
            yield f"retained over {odd.retained_scored} of {odd.retained} concepts"
        if odd.without_value:
            yield f"{odd.without_value} of {odd.judged} pictures without a value"
        if odd.constant:
            yield f"{odd.constant} of {odd.count} pictures of one colour"


@dataclass(frozen=True)
class Summary:
    """A sweep's settings, controls included, the largest resurgence first.

    `axes` are the parameters on which they differ; `caption` says what was measured; `pictures` is
    what is odd about those of all trials; `kept` is the role of the concepts that should survive.
    """

    settings: tuple[Aggregate, ...]
    axes: tuple[str, ...]
    caption: str
    pictures: Pictures
    kept: Role = "retained"

    @property
    def shown(self) -> list[Aggregate]:
        """The settings that fine-tune; all of them, where a sweep unlearns and no more.

        Those that end with the unlearned model are left out otherwise: their resurgence is 0 by
        construction. So are controls: their score is a column.
        """
        settings = [s for s in self.settings if not s.is_control]
        return [s for s in settings if s.is_tuned] or settings

    @property
    def is_tuned(self) -> bool:
        """Whether any setting fine-tunes."""
        return any(s.is_tuned for s in self.settings if not s.is_control)

    def warnings(self) -> Iterator[str]:
        """A sentence for each thing that makes the numbers mean less than they seem to."""
        fewer = [s for s in self.shown if s.scored and s.seeds_scored < s.seeds_planned]
        if fewer:
            yield (
                f"{len(fewer)} of {len(self.shown)} settings have fewer seeds than were planned: "
                f"their means are over what is there (column seeds)"
            )
        if ruined := sum(s.model_ruined > 0 for s in self.shown):
            yield (
                f"{ruined} of {len(self.shown)} settings began from a ruined model: unlearning "
                f"took more than {MAX_RETAINED_LOSS:.0%} of the base's retained score; they are "
                f"not ranked"
            )
        if self.pictures.constant:
            yield (
                f"{self.pictures.constant} of {self.pictures.count} pictures are of one colour "
                f"(black, say): a safety checker or a broken autoencoder makes such, and a metric "
                f"takes them for pictures without the concept"
            )
        measured = [s.paired.resurgence for s in self.shown if s.paired]
        if wide := sum(estimate.is_wider_than_effect for estimate in measured):
            yield (
                f"{wide} of {len(measured)} intervals are wider than their resurgence is large: "
                f"only more seeds, prompts or images can tell how much came back there"
            )


def aggregate(plan: Plan, store: Store, reader: TrialReader | None = None) -> Summary:
    """The trials with their seeds taken together."""
    reader = reader or TrialReader(plan, store)
    axes = tuple(axis for axis in plan.varying if axis != "seed")

    def key(measured: Measured) -> tuple[object, ...]:
        params = measured.planned.trial.params.items()
        return (measured.planned.is_control, *((k, v) for k, v in params if k != "seed"))

    pictures = reader.pictures(plan.trials)
    settings = _settings(reader, reader.all(), key)
    return Summary(settings, axes, caption(plan), pictures, _kept(plan))


def aggregate_by(plan: Plan, store: Store, by: Sequence[str]) -> Summary:
    """The trials that fine-tune, averaged over every axis but those of `by`.

    What is averaged over is a fixed set: the means are of these settings and no others. So
    settings are averaged image by image within a seed, and prompts and seeds stay what the
    intervals are over. Prompts of several concepts are prompts side by side.

    Raises:
        ResurgeError: `by` names what is no axis of the sweep.
    """
    axes = [axis for axis in plan.varying if axis != "seed"]
    for name in by:
        if name not in axes:
            hint = suggest(name, axes) if axes else "; all its trials are of one setting"
            raise ResurgeError(f"no axis of sweep {plan.name!r} is called {name!r}{hint}")
    reader = TrialReader(plan, store)
    tuned = [m for m in reader.all() if not (m.planned.is_control or is_unchanged(m.planned))]

    def key(measured: Measured) -> tuple[object, ...]:
        return tuple((axis, measured.planned.trial.params.get(axis)) for axis in by)

    over = ", ".join(axis for axis in axes if axis not in by)
    note = f"{caption(plan)} · averaged over {over}" if over else caption(plan)
    pictures = reader.pictures(plan.trials)
    return Summary(_settings(reader, tuned, key), tuple(by), note, pictures, _kept(plan))


def _settings(reader: TrialReader, trials: Iterable[Measured], key: Key) -> tuple[Aggregate, ...]:
    """The groups by that key, with Holm's p-values over those that are ranked."""
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for measured in trials:
        groups.setdefault(key(measured), []).append(measured)
    alike = [_Alike(reader, group) for group in groups.values()]
    values = [list(one.values()) for one in alike]
    numbers = iter(numbers_of([each for some in values for each in some]))  # all at once
    settings = [
        _aggregate(one, list(islice(numbers, len(some))))
        for one, some in zip(alike, values, strict=True)
    ]
    ranked = {i: s.paired.p for i, s in enumerate(settings) if s.is_ranked and s.paired}
    for i, p in zip(ranked, holm(list(ranked.values())), strict=True):
        settings[i] = replace(settings[i], p_holm=p)

    def rank(setting: Aggregate) -> tuple[bool, bool, bool, float]:
        value = setting.resurgence
        return (setting.is_control, value is None, not setting.is_sound, -(value or 0.0))

    return tuple(sorted(settings, key=rank))


class _Alike:
    """The trials of a setting."""

    def __init__(self, reader: TrialReader, trials: Sequence[Measured]) -> None:
        self.reader = reader
        self.trials = trials
        self.scored = [m for m in trials if m.paired is not None]
        self.replicates = _replicates(self.scored)

    def values(self) -> Iterator[GroupValues]:
        """Of the erased concept as a whole, and of the groups that every trial asks for and has
        values of.
        """
        trials = [m for replicate in self.replicates for m in replicate]
        if not trials:
            return
        asked = groups_of(trials[0].planned.final)
        known = (g for g in asked if all(any(o.group == g for o in m.groups) for m in trials))
        for group in (ERASED, *known):
            (base, unlearned, final), shares, clusters = _stacked(
                self.reader, self.replicates, group
            )
            yield GroupValues(
                group=group,
                models=(base, unlearned, final),
                shares=shares,
                clusters=tuple(clusters) if group.is_sample else None,
                has_no_edit=all(is_unchanged(m.planned) for m in trials),
            )


def _aggregate(alike: _Alike, numbers: Sequence[GroupNumbers]) -> Aggregate:
    trials, scored, replicates = alike.trials, alike.scored, alike.replicates
    seeds = {m.planned.trial.seed for m in trials}
    lacking = {m.planned.trial.seed for m in trials if m.paired is None}
    has_control = [m for m in trials if m.planned.control is not None]
    kept = [m for replicate in replicates for m in replicate] or trials
    erased = next((one for one in numbers if one.group == ERASED), None)
    return Aggregate(
        params=_common(trials),
        is_control=trials[0].planned.is_control,
        is_tuned=not all(is_unchanged(m.planned) for m in trials),
        steps=max(m.planned.steps for m in trials),
        planned=len(trials),
        scored=len(scored),
        failed=sum(m.status == "failed" for m in trials),
        unlearning_failed=sum(bool(m.unlearning_failed) for m in trials),
        model_ruined=sum(bool(m.model_ruined) for m in trials),
        seeds_planned=len(seeds),
        seeds_scored=len(seeds - lacking),
        controls_planned=len(has_control),
        controls_scored=sum(m.control is not None for m in has_control),
        without_score=sum(m.status == "done" and m.paired is None for m in trials),
        pictures=alike.reader.pictures(m.planned for m in trials),
        base=_mean(m.base.erased for m in trials),
        unlearned=_mean(m.unlearned.erased for m in kept),
        final=_mean(m.final.erased for m in kept),
        control=_mean(m.control for m in trials),
        retained=_mean(m.final.retained for m in kept),
        never_known=_mean(m.final.never_known for m in kept),
        paired=erased.paired if erased else None,
        p_holm=None,
        resurgence_by_seed=tuple(
            float(np.mean([m.paired.resurgence.value for m in replicate if m.paired]))
            for replicate in replicates
        ),
        final_low=erased.after.low if erased else None,
        final_high=erased.after.high if erased else None,
        groups=tuple(one for one in numbers if one.group != ERASED),
    )


def _common(trials: Sequence[Measured]) -> dict[str, Scalar]:
    """The parameters on which all agree; the seed is none."""
    first, *others = (m.planned.trial.params for m in trials)
    return {
        name: value
        for name, value in first.items()
        if name != "seed" and all(name in p and p[name] == value for p in others)
    }


def _replicates(trials: Iterable[Measured]) -> list[list[Measured]]:
    """The trials by seed, those of one final model and images once.

    A method without randomness gives all seeds one unlearned model: where that is also the final
    one, it is one replicate and not as many as there are seeds. A seed that lacks a concept which
    another has already waits until it is there too.
    """
    by_seed: dict[int, list[Measured]] = {}
    for measured in trials:
        by_seed.setdefault(measured.planned.trial.seed, []).append(measured)
    unique = {frozenset(m.planned.final.sample.digest for m in g): g for g in by_seed.values()}
    concepts = [frozenset(m.planned.trial.concept for m in group) for group in unique.values()]
    most = max(concepts, key=len, default=frozenset())
    return [group for group, own in zip(unique.values(), concepts, strict=True) if own == most]


def _stacked(
    reader: TrialReader, replicates: Iterable[Iterable[Measured]], group: Group
) -> tuple[npt.NDArray[np.float64], bool, list[int]]:
    """A group's values of the three models: shape (3, seeds, prompts, images); whether they are
    shares, which are 0 or 1, or means of such; and of which concept each prompt is, by number.

    A seed's values are averaged over its settings, the concepts' prompts side by side.
    """
    seeds, are_all_shares, clusters = [], True, list[int]()
    for replicate in replicates:
        by_concept: dict[str, list[Array]] = {}
        of: dict[str, tuple[int, ...]] = {}
        for measured in replicate:
            planned = measured.planned
            points = (planned.base, planned.unlearned, planned.final)
            found = [v for point in points if (v := reader.group(point, group)) is not None]
            values = np.stack([one.values for one in found])
            are_all_shares = are_all_shares and bool(are_shares(values).all())
            by_concept.setdefault(planned.trial.concept, []).append(values)
            of[planned.trial.concept] = found[0].clusters
        means = [np.mean(found, axis=0) for _, found in sorted(by_concept.items())]
        seeds.append(np.concatenate(_equally_many(means), axis=1))
        clusters = []
        for _, numbers in sorted(of.items()):
            clusters += [number + 1 + max(clusters, default=-1) for number in numbers]
    return np.stack(seeds, axis=1), are_all_shares, clusters


def _equally_many(values: Sequence[Array]) -> list[Array]:
    """Each (models, prompts, images), filled with NaN up to the most images that one has."""
    most = max(some.shape[2] for some in values)
    if all(some.shape[2] == most for some in values):
        return list(values)
    return [
        np.pad(some, ((0, 0), (0, 0), (0, most - some.shape[2])), constant_values=np.nan)
        for some in values
    ]


def _kept(plan: Plan) -> Role:
    return kept_role(plan.trials[0].final) if plan.trials else "retained"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


SAMPLERS = {"ddim": "DDIM", "dpmsolver++": "DPM-Solver++", "euler": "Euler", "unipc": "UniPC"}
"""As they are written."""


def caption(plan: Plan) -> str:
    """What the numbers are: metric, guidance, sampler, images, prompts, seeds."""
    if not plan.trials:
        return "no trials yet"
    final = plan.trials[0].final
    if not final.is_drawn:
        return "no pictures were drawn: there is no resurgence, only what the metrics say of models"
    score, sampling = final.primary, final.sample.settings["settings"]
    of = {planned.trial.concept: planned.final.sample.settings["probes"] for planned in plan.trials}
    counts = [sum(probe["role"] == "erased" for probe in probes) for probes in of.values()]
    asked = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    seeds = {planned.trial.params.get("seed") for planned in plan.trials}
    meant = "seeds" if len(seeds) > 1 else "this one seed only"
    parts = [
        f"{score.plugin} v{score.version}" if score else "no image metric",
        f"guidance {number(sampling['guidance'])}",
        f"{SAMPLERS[sampling['sampler']]} {sampling['sampler_steps']} steps",
        f"{asked} prompts × {sampling['images_per_prompt']} images × {len(seeds)} seeds",
        f"95% intervals over prompts and {meant}, paired by image",
    ]
    return " · ".join(parts)
