"""Time to resurgence: how many steps of fine-tuning until the concept is back.

Not every run gets there: those that do not are censored at their largest step count, and a mean
over the others would be too small. So this is survival analysis, with the seeds as subjects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.stats.kaplan_meier import Survival, Time, kaplan_meier
from orchestrator.store.store import Store
from orchestrator.sweep.trial import Scalar


@dataclass(frozen=True)
class SettingTimes:
    """A setting's times, one a seed.

    `never_gone` counts the seeds that are left out because unlearning failed, or left the score
    above the threshold, `ruined` those whose model it ruined, and `to_come` those without a score
    after fine-tuning yet.
    """

    params: Mapping[str, Scalar]
    times: tuple[Time, ...]
    never_gone: int
    ruined: int
    to_come: int

    @property
    def left_out(self) -> str:
        """'never gone in 1, to come in 2': the seeds that have no time; empty if all have."""
        counts = (
            ("never gone", self.never_gone),
            ("model ruined", self.ruined),
            ("to come", self.to_come),
        )
        return ", ".join(f"{what} in {count}" for what, count in counts if count)

    @property
    def curve(self) -> tuple[Survival, ...]:
        """Kaplan and Meier's estimate."""
        return kaplan_meier(self.times)

    @property
    def median(self) -> int | None:
        """The first step count by which half of the seeds or more have it back; None if later."""
        return next((point.steps for point in self.curve if point.share <= 0.5), None)


@dataclass(frozen=True)
class Times:
    """A sweep's settings without their step counts, the fastest first."""

    settings: tuple[SettingTimes, ...]
    axes: tuple[str, ...]
    threshold: float | None


def times_to_resurgence(plan: Plan, store: Store, threshold: float | None = None) -> Times:
    """How soon each setting's concept came back, seed by seed.

    Args:
        threshold: the final score that counts as back; if None, halfway from the unlearned
            model's to the base's, each seed's own.

    Raises:
        ResurgeError: the sweep has fewer than two step counts above 0.
    """
    trials = [m for m in TrialReader(plan, store).all() if not m.planned.is_control]
    counts = {m.planned.steps for m in trials if m.planned.steps}
    if len(counts) < 2:
        raise ResurgeError(
            f"time to resurgence needs two step counts above 0 or more but sweep {plan.name!r} has "
            f"{len(counts)}; give the last finetune `steps: [50, 100, 200]`"
        )
    groups: dict[tuple[object, ...], list[Measured]] = {}
    for measured in trials:
        groups.setdefault(tuple(_params(measured).items()), []).append(measured)
    settings = [_setting(group, threshold) for group in groups.values()]
    settings.sort(
        key=lambda setting: (
            not setting.times,
            setting.median or math.inf,
            setting.curve[-1].share if setting.times else 1.0,
        )
    )
    free = {"seed", *(m.planned.steps_param for m in trials)}
    axes = tuple(axis for axis in plan.varying if axis not in free)
    return Times(tuple(settings), axes, threshold)


def _params(measured: Measured) -> dict[str, Scalar]:
    free = {"seed", measured.planned.steps_param}
    return {k: v for k, v in measured.planned.trial.params.items() if k not in free}


def _setting(trials: Sequence[Measured], threshold: float | None) -> SettingTimes:
    """The seeds' times; a seed without a score after fine-tuning is not among them yet."""
    seeds: dict[int, list[Measured]] = {}
    for measured in trials:
        seeds.setdefault(measured.planned.trial.seed, []).append(measured)

    def was_there(measured: Measured) -> bool:
        """Whether the concept was there before any fine-tuning."""
        unlearned, level = measured.unlearned.erased, _level(measured, threshold)
        above = unlearned is not None and level is not None and unlearned >= level
        return above or bool(measured.unlearning_failed)

    whole = [group for group in seeds.values() if not any(m.model_ruined for m in group)]
    gone = [group for group in whole if not any(was_there(m) for m in group)]
    times = [time_of(group, threshold) for group in gone]
    return SettingTimes(
        params=_params(trials[0]),
        times=tuple(time for time in times if time is not None),
        never_gone=len(whole) - len(gone),
        ruined=len(seeds) - len(whole),
        to_come=sum(time is None for time in times),
    )


def time_of(trials: Iterable[Measured], threshold: float | None) -> Time | None:
    """When one seed's concept came back; None if nothing can be said yet.

    Scores are read in order of steps up to the first that is missing: what came later cannot tell
    whether it was the first.
    """
    before = 0
    for measured in sorted(trials, key=lambda m: m.planned.steps):
        level = _level(measured, threshold)
        if measured.final.erased is None or level is None:
            break
        if measured.planned.steps and measured.final.erased >= level:
            return Time(measured.planned.steps, True, before)
        before = measured.planned.steps
    return Time(before, False) if before else None


def _level(measured: Measured, threshold: float | None) -> float | None:
    base, unlearned = measured.base.erased, measured.unlearned.erased
    if threshold is not None:
        return threshold
    return None if base is None or unlearned is None else (base + unlearned) / 2
