"""A mean over prompts and seeds, and how uncertain that makes it. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Array = npt.NDArray[np.float64]
"""Values of images: shape (seeds, prompts, images)."""
CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""Leaves out 2.5% on either side."""


@dataclass(frozen=True)
class Mean:
    """A mean with the variance of its error, and that variance's degrees of freedom."""

    value: float
    variance: float
    df: float

    @property
    def quantile(self) -> float:
        """Student's t that leaves out 2.5% on either side."""
        return float(stdtrit(self.df, (1 + CONFIDENCE) / 2))

    @property
    def half_width(self) -> float:
        """Half of the 95% interval."""
        return self.quantile * math.sqrt(self.variance)

    @property
    def p_value(self) -> float:
        """Two-sided, of the mean being 0; below 0.05 exactly where the interval leaves 0 out."""
        if self.value == 0 or not math.isfinite(self.variance):
            return 1.0
        if self.variance == 0:
            return 0.0
        return 2 * float(stdtr(self.df, -abs(self.value) / math.sqrt(self.variance)))


def two_way_mean(
    values: Array, least_variance: float = 0.0, clusters: Sequence[int] | None = None
) -> Mean:
    """The mean of values in which images of a prompt are alike, and so are images of a seed.

    Prompts and seeds are crossed: every seed's model draws the same prompts. Both are samples, of
    the prompts that could have been asked and of the runs that could have been made. So the
    variance of the mean is

        var(means of prompts) / prompts + var(means of seeds) / seeds,

    the one that resampling prompts and seeds independently tends to (the pigeonhole bootstrap:
    Owen, 2007, "The pigeonhole bootstrap"; a little too large, as what is left of both counts
    twice). Ten prompts and two seeds are too few for percentiles of resamples: two seeds resample
    to one of them half of the time. So the interval is Student's t, with Satterthwaite's (1946)
    degrees of freedom: v² / (v_prompts² / (prompts - 1) + v_seeds² / (seeds - 1)).

    With three seeds or more it covers what it says. With two, the seeds' part has one degree of
    freedom: the interval is wide where the seeds disagree, and where their disagreement is large
    in truth and small by chance it is too narrow. With one, there is no seeds' part: the interval
    speaks of other prompts to the models of this one seed, and of no other seed. With one prompt,
    its images stand for prompts and the interval speaks of that prompt. benchmarks/coverage.py
    measures all of it.

    Where prompts are of several concepts that stand for others of their kind, prompts of one
    concept are alike too: `clusters` says which belong together, and what clusters add to the
    variance is taken where it is more than what prompts add as if each were alone.

    Args:
        values: shape (seeds, prompts, images), all finite (see `without_gaps`).
        least_variance: what the variance is at least, and with it prompts - 1 degrees of freedom.
        clusters: each prompt's cluster; None: every prompt is one.
    """
    if values.shape[1] == 1:
        values, clusters = values.transpose(0, 2, 1), None
    cells = values.mean(axis=2)
    own = _part(cells.mean(axis=0))
    if clusters is not None and len(set(clusters)) > 1:
        own = max(own, _cluster_part(cells.mean(axis=0), clusters))
    parts = [own, _part(cells.mean(axis=1))]
    variance = sum(part for part, _ in parts) if cells.size > 1 else math.inf
    prompts_df = max(cells.shape[1] - 1, 1)
    if variance <= least_variance or cells.size == 1:
        return Mean(float(cells.mean()), least_variance or variance, prompts_df)
    df = variance**2 / sum(part**2 / df for part, df in parts)
    return Mean(float(cells.mean()), variance, df)


def _part(means: Array) -> tuple[float, int]:
    """What a level adds to the variance of the mean, and its degrees of freedom."""
    n = means.size
    return (float(means.var(ddof=1)) / n, n - 1) if n > 1 else (0.0, 1)


def _cluster_part(means: Array, clusters: Sequence[int]) -> tuple[float, int]:
    """The same of clusters of prompts, which need not be of one size.

    Of the linear part of a ratio mean (Särndal, Swensson and Wretman, 1992, 5.5 and 8.2): with d
    the sum over a cluster of what its prompts are away from the mean of all P, and G clusters,
    G / (G - 1) times the sum of d² / P². For clusters of one size it is the variance of their means
    over G.
    """
    apart = means - means.mean()
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], apart)
    n = sums.size
    return float(n / (n - 1) * (sums**2).sum() / means.size**2), n - 1


def without_gaps(values: Array) -> Array:
    """Values with the mean in place of missing ones, and the same mean and uncertainty.

    What is there is drawn away from the mean by as much as the missing values hide: a mean of n
    of N values is a ratio, and this is its linear part (Särndal, Swensson and Wretman, 1992, 5.5).
    """
    there = np.isfinite(values)
    if there.all():
        return values
    mean = np.nanmean(values)
    gaps: Array = np.where(there, values - mean, 0.0) * (there.size / there.sum()) + mean
    return gaps


def are_shares(values: Array) -> bool:
    """Whether all values are 0 or 1, so that their mean is a proportion."""
    return bool(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all())


def least_variance(differences: Array) -> float:
    """What the variance of a mean of differences of 0/1 values is at least.

    It is that of as many independent images, with half a pair added to each of the four cells
    (gone, came, stayed, stayed away) of their table: Agresti and Min (2005), "Simple improved
    confidence intervals for comparing matched proportions". So where all images agree, the
    interval still has a width.
    """
    n = differences.size
    share = (float((differences**2).sum()) + 1) / (n + 2)
    return (share - (float(differences.sum()) / (n + 2)) ** 2) / n
