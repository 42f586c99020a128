"""Minimum detectable effect: how small a resurgence a sweep can tell from none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from orchestrator.stats.paired import ALPHA

POWER = 0.80
DRAWS = 20_000
IMAGE_VARIANCE = 0.25
"""Of an image's paired difference, at its largest: the final model shows the concept in half of its
images. So if the unlearned model shows it in none, or in half of them too and the shared noise
makes the two agree in half of what varies."""
PROMPT_ICC = 0.2
"""Share of that variance by which prompts differ."""
SEED_ICC = 0.05
"""Share of that variance by which seeds differ."""


@dataclass(frozen=True)
class Size:
    """How much a setting is measured by: images are of a prompt in a seed."""

    prompts: int
    images: int
    seeds: int

    def __str__(self) -> str:
        counts = {"prompt": self.prompts, "image": self.images, "seed": self.seeds}
        return " × ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items())


def minimum_detectable(
    size: Size,
    prompt_icc: float = PROMPT_ICC,
    seed_icc: float = SEED_ICC,
    image_variance: float = IMAGE_VARIANCE,
) -> float:
    """The resurgence that is told from 0 in 80% of sweeps, two-sided at 5%.

    The normal approximation is (1.96 + 0.84) · se (Cohen, 1988). It takes the standard error for
    known, and with few prompts and seeds it promises too much: so means stay normal, and the
    interval's own variance and degrees of freedom (`intervals.two_way_means`) are drawn from their
    distributions under these correlations. One seed has no variance between seeds: what is
    detected is that seed's resurgence. For one setting; among many, Holm's correction asks for
    more.
    """
    if size.prompts == 1 and size.images > 1:  # its images stand for prompts
        alone = Size(size.images, 1, size.seeds)
        return minimum_detectable(alone, 0.0, seed_icc, image_variance)
    seed_icc = seed_icc if size.seeds > 1 else 0.0
    images = size.prompts * size.seeds * size.images
    return math.sqrt(image_variance) * _needed(
        [
            (prompt_icc / size.prompts, max(size.prompts - 1, 1)),
            (seed_icc / size.seeds, size.seeds - 1),
        ],
        (1 - prompt_icc - seed_icc) / images,
    )


def _needed(levels: Sequence[tuple[float, int]], rest: float) -> float:
    """The mean whose interval leaves out 0 as often as `POWER` says.

    Args:
        levels: what prompts and seeds add to the variance of the mean, and their degrees of
            freedom; each is estimated with the images' part on top.
        rest: what images add.
    """
    rng = np.random.default_rng(0)
    error = rng.normal(size=DRAWS) * math.sqrt(sum(own for own, _ in levels) + rest)
    parts = [((own + rest) * rng.chisquare(df, DRAWS) / df, df) for own, df in levels if df]
    variance = sum((part for part, _ in parts), np.zeros(DRAWS))
    df = variance**2 / sum(part**2 / df for part, df in parts)
    return float(np.quantile(stdtrit(df, 1 - ALPHA / 2) * np.sqrt(variance) - error, POWER))
