"""Resurgence, recovery and their intervals. Numbers in, numbers out: no store, no plan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
"""Values of images: shape (seeds, prompts, images)."""

RESAMPLES = 2_000
CONFIDENCE = 0.95
MIN_GAP = 0.05
"""The smallest base − unlearned that recovery may be a share of: below it, it is noise / noise."""

_CHUNK_VALUES = 4_000_000
_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """What fine-tuning undid. `recovery` is None where unlearning took too little away."""

    resurgence: Estimate
    recovery: Estimate | None


def resurgence(unlearned: float, final: float) -> float:
    """How much of the concept's score fine-tuning brought back."""
    return final - unlearned


def recovery(base: float, unlearned: float, final: float) -> float | None:
    """Resurgence as a share of what unlearning took away; None if that was next to nothing."""
    gap = base - unlearned
    return (final - unlearned) / gap if gap > MIN_GAP else None


def unlearning_failed(base: float, unlearned: float) -> bool:
    """Whether there is nothing that could resurge.

    So if unlearning took away less than half of the base's score, or the base never had one.
    """
    return base <= MIN_GAP or base - unlearned < base / 2


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a bare proportion (Wilson, 1927)."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n and n above 0 but got {successes} of {n}")
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_bootstrap(base: Array, unlearned: Array, final: Array) -> Paired:
    """Resurgence and recovery with intervals by a bootstrap that is paired and clustered.

    The three models drew the same prompts from the same noise, so value (s, p, i) of each belongs
    together. A resample takes prompts with replacement, then (seed, image) pairs with replacement
    within each, the same ones for all three models. The same data give the same interval.

    Args:
        base, unlearned, final: shape (seeds, prompts, images), or broadcast to it.
    """
    stacked = np.stack(np.broadcast_arrays(base, unlearned, final))
    was, low, now = (float(mean) for mean in np.nanmean(stacked, axis=(1, 2, 3)))
    means = _resampled_means(stacked)
    return Paired(
        _estimate(resurgence(low, now), means[:, 2] - means[:, 1]),
        _recovery_estimate(recovery(was, low, now), means),
    )


def mean_interval(values: Array) -> Estimate:
    """The mean of one model's values by the same bootstrap; Wilson's where all are 0 or all 1.

    A bootstrap of equal values has no width, though n failures of n do not prove impossibility.
    """
    mean = float(np.nanmean(values))
    if mean in (0.0, 1.0) and np.nanmin(values) == np.nanmax(values):
        n = int(np.isfinite(values).sum())
        return Estimate(mean, *wilson(mean * n, n))
    return _estimate(mean, _resampled_means(values[None])[:, 0])


def _estimate(value: float, resampled: Array) -> Estimate:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def _recovery_estimate(value: float | None, means: Array) -> Estimate | None:
    """None too if some resamples leave next to nothing to recover: the ratio has no interval."""
    gap = means[:, 0] - means[:, 1]
    if value is None or np.mean(gap > MIN_GAP) < CONFIDENCE:
        return None
    usable = gap > MIN_GAP
    return _estimate(value, (means[usable, 2] - means[usable, 1]) / gap[usable])


def _resampled_means(stacked: Array) -> Array:
    """Means in each resample: (models, seeds, prompts, images) -> (resamples, models).

    All models are resampled alike.
    """
    models, seeds, prompts, images = stacked.shape
    clusters = stacked.transpose(2, 1, 3, 0).reshape(prompts, seeds * images, models)
    rng = np.random.default_rng(_seed_of(stacked))
    return np.concatenate(
        [
            _means_of(clusters, rng, count)
            for count in _chunks(RESAMPLES, max(1, _CHUNK_VALUES // stacked.size))
        ]
    )


def _means_of(clusters: Array, rng: np.random.Generator, count: int) -> Array:
    prompts, replicates, _ = clusters.shape
    chosen = rng.integers(prompts, size=(count, prompts, 1))
    picked = rng.integers(replicates, size=(count, prompts, replicates))
    values = clusters[chosen, picked]
    if np.isfinite(clusters).all():
        return np.asarray(values.mean(axis=(1, 2)))
    with np.errstate(invalid="ignore"):  # a resample of nothing but missing values is missing
        means: Array = np.nansum(values, axis=(1, 2)) / np.isfinite(values).sum(axis=(1, 2))
    return means


def _chunks(total: int, size: int) -> Iterator[int]:
    for begin in range(0, total, size):
        yield min(size, total - begin)


def _seed_of(values: Array) -> int:
    content = np.ascontiguousarray(values, dtype="<f8").tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
