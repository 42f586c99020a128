"""Means over prompts and seeds, and how uncertain that makes them. Numbers in, numbers out.

All work on many means at once: the first axis counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Array = npt.NDArray[np.float64]
"""Values of images: shape (seeds, prompts, images), or many such."""
CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""Leaves out 2.5% on either side."""


@dataclass(frozen=True)
class Means:
    """Means with the variances of their errors, and those variances' degrees of freedom: (n,)."""

    values: Array
    variances: Array
    dfs: Array

    @property
    def quantiles(self) -> Array:
        """Student's t that leaves out 2.5% on either side."""
        found: Array = stdtrit(self.dfs, (1 + CONFIDENCE) / 2)
        return found

    @property
    def half_widths(self) -> Array:
        """Half of the 95% intervals."""
        return self.quantiles * np.sqrt(self.variances)

    @property
    def p_values(self) -> Array:
        """Two-sided, of a mean being 0; below 0.05 exactly where the interval leaves 0 out."""
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = -np.abs(self.values) / np.sqrt(self.variances)
        found: Array = np.where(self.variances == 0, 0.0, 2 * stdtr(self.dfs, apart))
        return np.where((self.values == 0) | ~np.isfinite(self.variances), 1.0, found)


def two_way_means(
    values: Array, least_variances: Array | float = 0.0, clusters: Sequence[int] | None = None
) -> Means:
    """Means of values in which images of a prompt are alike, and so are images of a seed.

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
        values: shape (n, seeds, prompts, images), all finite (see `without_gaps`).
        least_variances: what a variance is at least, and with it prompts - 1 degrees of freedom.
        clusters: each prompt's cluster; None: every prompt is one.
    """
    if values.shape[2] == 1:
        values, clusters = values.transpose(0, 1, 3, 2), None
    cells = values.mean(axis=3)
    means = _flat(cells).mean(axis=1)
    (own, own_df), (seeds, seeds_df) = _part(cells.mean(axis=1)), _part(cells.mean(axis=2))
    dfs = np.full(len(cells), float(own_df))
    if clusters is not None and len(set(clusters)) > 1:
        among, among_df = _cluster_part(cells.mean(axis=1), clusters)
        dfs = np.where(among > own, among_df, dfs)
        own = np.maximum(own, among)
    least = np.broadcast_to(np.asarray(least_variances, dtype=np.float64), means.shape)
    prompts_df = float(max(cells.shape[2] - 1, 1))
    if cells.shape[1] * cells.shape[2] == 1:  # one value says nothing of others
        return Means(means, np.where(least > 0, least, np.inf), np.full_like(means, prompts_df))
    variances = own + seeds
    with np.errstate(invalid="ignore"):  # none at all: the least holds
        dfs = variances**2 / (own**2 / dfs + seeds**2 / seeds_df)
    is_less = variances <= least
    return Means(means, np.where(is_less, least, variances), np.where(is_less, prompts_df, dfs))


def _flat(values: Array) -> Array:
    """All but the first axis as one."""
    return values.reshape(len(values), -1)


def _part(means: Array) -> tuple[Array, int]:
    """What a level adds to the variances of the means, (n,), and its degrees of freedom."""
    n = means.shape[1]
    return (means.var(axis=1, ddof=1) / n, n - 1) if n > 1 else (np.zeros(len(means)), 1)


def _cluster_part(means: Array, clusters: Sequence[int]) -> tuple[Array, int]:
    """The same of clusters of prompts, which need not be of one size.

    Of the linear part of a ratio mean (Särndal, Swensson and Wretman, 1992, 5.5 and 8.2): with d
    the sum over a cluster of what its prompts are away from the mean of all P, and G clusters,
    G / (G - 1) times the sum of d² / P². For clusters of one size it is the variance of their means
    over G.
    """
    apart = means - means.mean(axis=1, keepdims=True)
    which = np.unique(clusters, return_inverse=True)[1]
    n = int(which.max()) + 1
    sums = apart @ (which[:, None] == np.arange(n))
    return n / (n - 1) * (sums**2).sum(axis=1) / means.shape[1] ** 2, n - 1


def without_gaps(values: Array) -> Array:
    """Values, (n, …), with the mean in place of missing ones, and the same means and uncertainty.

    What is there is drawn away from the mean by as much as the missing values hide: a mean of n
    of N values is a ratio, and this is its linear part (Särndal, Swensson and Wretman, 1992, 5.5).
    """
    flat = _flat(values)
    there = np.isfinite(flat)
    gappy = ~there.all(axis=1)
    if not gappy.any():
        return values
    some, known = flat[gappy], there[gappy]
    means = np.nanmean(some, axis=1, keepdims=True)
    share = known.shape[1] / known.sum(axis=1, keepdims=True)
    filled = flat.copy()
    filled[gappy] = np.where(known, some - means, 0.0) * share + means
    return filled.reshape(values.shape)


def are_shares(values: Array) -> npt.NDArray[np.bool_]:
    """Whether all values of one, (n, …), are 0 or 1, so that their mean is a proportion: (n,)."""
    flat = _flat(values)
    known: npt.NDArray[np.bool_] = ((flat == 0) | (flat == 1) | ~np.isfinite(flat)).all(axis=1)
    return known


def least_variances(differences: Array) -> Array:
    """What the variance of a mean of differences of 0/1 values, (n, …), is at least: (n,).

    It is that of as many independent images, with half a pair added to each of the four cells
    (gone, came, stayed, stayed away) of their table: Agresti and Min (2005), "Simple improved
    confidence intervals for comparing matched proportions". So where all images agree, the
    interval still has a width.
    """
    flat = _flat(differences)
    n = flat.shape[1]
    shares = ((flat**2).sum(axis=1) + 1) / (n + 2)
    found: Array = (shares - (flat.sum(axis=1) / (n + 2)) ** 2) / n
    return found
