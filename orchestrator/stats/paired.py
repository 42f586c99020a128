"""Resurgence, recovery, their intervals and p-values. Numbers in, numbers out: no store, no plan.

docs/measuring.md has the formulas, and what they leave open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.stats.intervals import (
    NORMAL_QUANTILE,
    Array,
    Means,
    are_shares,
    least_variances,
    two_way_means,
    without_gaps,
)

Shares = npt.NDArray[np.bool_] | None
"""Of each of many settings, whether its values are 0 or 1, or means of such; None: look them up."""

MIN_GAP = 0.05
"""The smallest base − unlearned that recovery may be a share of: below it, it is noise / noise."""
MAX_RETAINED_LOSS = 0.5
"""The largest share of the base's retained score that unlearning may take: a method that takes more
has ruined the model, and that the concept is gone too says nothing.
"""
ALPHA = 0.05


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether enough was measured for one; its ends are infinite otherwise."""
        return math.isfinite(self.high - self.low)

    @property
    def is_wider_than_effect(self) -> bool:
        """Whether the interval says less than nothing: it is wider than the value is far from 0."""
        return self.high - self.low > abs(self.value)


@dataclass(frozen=True)
class Paired:
    """What fine-tuning undid. `recovery` is None where unlearning took too little away.

    `p` is two-sided, of a resurgence of 0.
    """

    resurgence: Estimate
    recovery: Estimate | None
    p: float


def unlearning_failed(base: float, unlearned: float) -> bool:
    """Whether there is nothing that could resurge.

    So if unlearning took away less than half of the base's score, or the base never had one.
    """
    return base <= MIN_GAP or base - unlearned < base / 2


def model_ruined(base_retained: float, unlearned_retained: float) -> bool:
    """Whether unlearning took away more than half of what it should have kept.

    Not where the base itself has next to nothing of it.
    """
    lost = base_retained - unlearned_retained
    return base_retained > MIN_GAP and not lost <= MAX_RETAINED_LOSS * base_retained


def wilson(successes: float, n: float, quantile: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """Wilson's interval of a bare proportion (Wilson, 1927); of 95% unless `quantile` is given."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n and n above 0 but got {successes} of {n}")
    share, z2 = successes / n, quantile * quantile
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half  # exactly, where rounding would not
    return low, 1.0 if successes == n else middle + half


def paired_intervals(
    base: Array,
    unlearned: Array,
    final: Array,
    shares: Shares = None,
    clusters: Sequence[int] | None = None,
) -> list[Paired]:
    """Resurgence and recovery of many settings at once, with intervals over prompts and seeds.

    The three models drew the same prompts from the same noise, so value (s, p, i) of each belongs
    together and what counts is their difference. `two_way_means` says what the intervals are and
    what they mean for one, two and three seeds. Recovery is a ratio of two means: its interval is
    that of its linear part (the delta method).

    Args:
        base, unlearned, final: shape (n, seeds, prompts, images), or broadcast to it.
        shares: whether the values are 0 or 1, or means of such, (n,); looked up in the values if
            None.
        clusters: which prompts are of one concept, where concepts are a sample of others.
    """
    models = np.broadcast_arrays(base, unlearned, final)
    shares = _all_shares(*models) if shares is None else shares
    was, low, now = (without_gaps(values) for values in models)
    gap, back = was - low, now - low
    taken, regained = _means_of(gap, shares, clusters), _means_of(back, shares, clusters)
    recovered: list[Estimate | None] = [None] * len(gap)
    # None too where the interval of what was taken away reaches next to nothing.
    [known] = np.nonzero(taken.values - taken.half_widths > MIN_GAP)
    if known.size:
        gap, back, of = gap[known], back[known], taken.values[known]
        share = back.reshape(len(back), -1).mean(axis=1) / of
        each = (slice(None), None, None, None)
        linear = share[each] + (back - share[each] * gap) / of[each]
        least = np.where(shares[known], least_variances(back) / of**2, 0.0)
        found = _estimates(two_way_means(linear, least, clusters), None)
        for i, estimate in zip(known, found, strict=True):
            recovered[i] = estimate
    regain, p_values = _estimates(regained, shares), regained.p_values
    return [
        Paired(resurgence, recovery, float(p))
        for resurgence, recovery, p in zip(regain, recovered, p_values, strict=True)
    ]


def paired_interval(
    base: Array,
    unlearned: Array,
    final: Array,
    shares: bool | None = None,
    clusters: Sequence[int] | None = None,
) -> Paired:
    """Of one setting: `paired_intervals` of models of shape (seeds, prompts, images)."""
    was, low, now = (np.asarray(values)[None] for values in (base, unlearned, final))
    [found] = paired_intervals(was, low, now, _one(shares), clusters)
    return found


def changes(
    before: Array, after: Array, shares: Shares = None, clusters: Sequence[int] | None = None
) -> list[Estimate]:
    """after - before with intervals, paired by image; arguments as of `paired_intervals`."""
    models = np.broadcast_arrays(before, after)
    shares = _all_shares(*models) if shares is None else shares
    was, now = (without_gaps(values) for values in models)
    return _estimates(_means_of(now - was, shares, clusters), shares)


def change(before: Array, after: Array) -> Estimate:
    """Of one pair of models: `changes` of values of shape (seeds, prompts, images)."""
    [found] = changes(np.asarray(before)[None], np.asarray(after)[None])
    return found


def unchanged(paired: Paired) -> Paired:
    """The same of a final model that is the unlearned one: 0, and certainly so."""
    zero = Estimate(0.0, 0.0, 0.0)
    return Paired(zero, zero if paired.recovery else None, 1.0)


def mean_intervals(
    values: Array, shares: Shares = None, clusters: Sequence[int] | None = None
) -> list[Estimate]:
    """The mean of each model's values over prompts and seeds; arguments as of `paired_intervals`.

    For a proportion it is Wilson's interval, which stays between 0 and 1 and has a width also
    where all images agree. As many images as would be as uncertain if they were independent stand
    for n, and Student's t for the normal (Korn and Graubard, 1998; Franco et al., 2019).
    """
    shares = are_shares(values) if shares is None else shares
    means = two_way_means(without_gaps(values), clusters=clusters)
    counts = np.isfinite(values).reshape(len(values), -1).sum(axis=1)
    found = _estimates(means, None)
    numbers = zip(means.values, means.variances, means.quantiles, counts, strict=True)
    for i, (value, variance, quantile, n) in enumerate(numbers):
        if shares[i]:
            binomial = value * (1 - value)
            effective = min(n, binomial / variance) if binomial > 0 and variance > 0 else n
            ends = wilson(float(value * effective), float(effective), float(quantile))
            found[i] = Estimate(float(value), *ends)
    return found


def mean_interval(
    values: Array, shares: bool | None = None, clusters: Sequence[int] | None = None
) -> Estimate:
    """Of one model: `mean_intervals` of values of shape (seeds, prompts, images)."""
    [found] = mean_intervals(np.asarray(values)[None], _one(shares), clusters)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: those below 0.05 hold together with 95% confidence.

    The k-th smallest of n counts n - k + 1 times, and no less than a smaller one.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = min(1.0, max(least, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _one(shares: bool | None) -> Shares:
    return None if shares is None else np.array([shares])


def _all_shares(*models: Array) -> npt.NDArray[np.bool_]:
    """Whether all of the models' values are 0 or 1."""
    found = are_shares(models[0])
    for values in models[1:]:
        found = found & are_shares(values)
    return found


def _means_of(
    differences: Array, shares: npt.NDArray[np.bool_], clusters: Sequence[int] | None
) -> Means:
    least = np.where(shares, least_variances(differences), 0.0)
    return two_way_means(differences, least, clusters)


def _estimates(means: Means, shares: Shares) -> list[Estimate]:
    """With intervals that end at -1 and 1 where `shares` says that differences do."""
    half = means.half_widths
    low, high = means.values - half, means.values + half
    if shares is not None:
        low = np.where(shares, np.maximum(low, -1.0), low)
        high = np.where(shares, np.minimum(high, 1.0), high)
    return [Estimate(*map(float, one)) for one in zip(means.values, low, high, strict=True)]
