"""Resurgence, recovery, their intervals and p-values. Numbers in, numbers out: no store, no plan.

docs/measuring.md has the formulas, and what they leave open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.stats.intervals import (
    NORMAL_QUANTILE,
    Array,
    Mean,
    are_shares,
    least_variance,
    two_way_mean,
    without_gaps,
)

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


def paired_interval(
    base: Array,
    unlearned: Array,
    final: Array,
    shares: bool | None = None,
    clusters: Sequence[int] | None = None,
) -> Paired:
    """Resurgence and recovery with intervals over prompts and seeds.

    The three models drew the same prompts from the same noise, so value (s, p, i) of each belongs
    together and what counts is their difference. `two_way_mean` says what the intervals are and
    what they mean for one, two and three seeds. Recovery is a ratio of two means: its interval is
    that of its linear part (the delta method).

    Args:
        base, unlearned, final: shape (seeds, prompts, images), or broadcast to it.
        shares: whether the values are 0 or 1, or means of such; looked up in the values if None.
        clusters: which prompts are of one concept, where concepts are a sample of others.
    """
    stacked = np.stack(np.broadcast_arrays(base, unlearned, final))
    shares = are_shares(stacked) if shares is None else shares
    was, low, now = (without_gaps(values) for values in stacked)
    gap, back = was - low, now - low
    taken, regained = _mean_of(gap, shares, clusters), _mean_of(back, shares, clusters)
    recovered = None
    # None too where the interval of what was taken away reaches next to nothing.
    if taken.value - taken.half_width > MIN_GAP:
        share = float(back.mean()) / taken.value
        linear = share + (back - share * gap) / taken.value
        least = least_variance(back) / taken.value**2 if shares else 0.0
        recovered = _estimate(two_way_mean(linear, least, clusters), None)
    return Paired(
        resurgence=_estimate(regained, (-1.0, 1.0) if shares else None),
        recovery=recovered,
        p=regained.p_value,
    )


def change(
    before: Array, after: Array, shares: bool | None = None, clusters: Sequence[int] | None = None
) -> Estimate:
    """after - before with its interval, paired by image; arguments as of `paired_interval`."""
    stacked = np.stack(np.broadcast_arrays(before, after))
    shares = are_shares(stacked) if shares is None else shares
    was, now = (without_gaps(values) for values in stacked)
    return _estimate(_mean_of(now - was, shares, clusters), (-1.0, 1.0) if shares else None)


def unchanged(paired: Paired) -> Paired:
    """The same of a final model that is the unlearned one: 0, and certainly so."""
    zero = Estimate(0.0, 0.0, 0.0)
    return Paired(zero, zero if paired.recovery else None, 1.0)


def mean_interval(
    values: Array, shares: bool | None = None, clusters: Sequence[int] | None = None
) -> Estimate:
    """The mean of one model's values over prompts and seeds; `clusters` as of `paired_interval`.

    For a proportion it is Wilson's interval, which stays between 0 and 1 and has a width also
    where all images agree. As many images as would be as uncertain if they were independent stand
    for n, and Student's t for the normal (Korn and Graubard, 1998; Franco et al., 2019).
    """
    mean = two_way_mean(without_gaps(values), clusters=clusters)
    if not (are_shares(values) if shares is None else shares):
        return _estimate(mean, None)
    n, binomial = int(np.isfinite(values).sum()), mean.value * (1 - mean.value)
    effective = min(n, binomial / mean.variance) if binomial > 0 and mean.variance > 0 else n
    return Estimate(mean.value, *wilson(mean.value * effective, effective, mean.quantile))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: those below 0.05 hold together with 95% confidence.

    The k-th smallest of n counts n - k + 1 times, and no less than a smaller one.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = min(1.0, max(least, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _mean_of(differences: Array, shares: bool, clusters: Sequence[int] | None) -> Mean:
    least = least_variance(differences) if shares else 0.0
    return two_way_mean(differences, least, clusters)


def _estimate(mean: Mean, bounds: tuple[float, float] | None) -> Estimate:
    low, high = mean.value - mean.half_width, mean.value + mean.half_width
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(mean.value, low, high)
