"""How often a 95% interval holds the truth: ours, and two bootstraps', on simulated sweeps.

A simulated image shows the concept where a sum of normal effects is above 0: of its prompt, of its
seed, of the two together, of its noise (the same for both models and all seeds), and its own. So
the true share is known. 2,000 sweeps a line; one seed is simulated with its effect held fixed, as
the interval then speaks of that seed. Prints how often each interval covers, and how wide ours is;
then the same where prompts are of several concepts, which are a sample of others.

    python -m benchmarks.coverage [SWEEPS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import ndtr

from orchestrator.stats.intervals import Array
from orchestrator.stats.paired import Estimate, mean_interval, paired_interval

SWEEPS = 2_000
RESAMPLES = 500
CHUNK_SWEEPS = 250
NOISE_SD = np.sqrt(0.5)


@dataclass(frozen=True)
class World:
    """What a setting is measured by, and how its true shares come about.

    `unlearned` and `final` are the models' means on the normal scale: 0 is a share of one half.
    The other numbers are the effects' standard deviations; 0.5 is about 20 points of a share.
    """

    seeds: int
    prompts: int = 10
    images: int = 8
    unlearned: float = -2.0
    final: float = 0.0
    prompt_sd: float = 0.8
    seed_sd: float = 0.2
    both_sd: float = 0.2
    concepts: int = 0
    concept_sd: float = 0.0

    @property
    def clusters(self) -> list[int] | None:
        """Of which concept each prompt is, if concepts are a sample; as many prompts of each."""
        if not self.concepts:
            return None
        return [prompt * self.concepts // self.prompts for prompt in range(self.prompts)]


USUAL = tuple(
    World(seeds, images=images, seed_sd=sd, both_sd=sd)
    for seeds in (1, 2, 3, 5)
    for images in (4, 8)
    for sd in (0.0, 0.2, 0.35)
)
"""What users have."""
HARD = (
    *(World(seeds, seed_sd=0.5, both_sd=0.3) for seeds in (2, 3, 5)),
    *(World(seeds, prompt_sd=0.3, seed_sd=0.5, both_sd=0.3) for seeds in (2, 3, 5)),
    *(World(seeds, final=-1.2) for seeds in (1, 2, 3)),
    *(World(seeds, unlearned=-3.0, final=-2.0) for seeds in (1, 2, 3)),
    *(World(seeds, unlearned=-2.0, final=-2.0) for seeds in (1, 2, 3)),
    *(World(seeds, unlearned=-3.0, final=2.5) for seeds in (1, 2, 3)),
    *(World(seeds, prompts=4, images=4) for seeds in (1, 2, 3)),
)
"""Seeds that differ much, little or nothing that comes back, everything, few prompts."""


CONCEPTS = tuple(
    World(
        seeds, prompts=concepts * each, images=4, unlearned=1.5, final=0.5,
        concepts=concepts, concept_sd=sd,
    )
    for seeds in (1, 3)
    for concepts, each in ((5, 2), (10, 5), (100, 5))
    for sd in (0.0, 0.6)
)  # fmt: skip
"""Concepts that should survive and that lose: five of two prompts, ten and a hundred of five."""


@dataclass(frozen=True)
class Sweeps:
    """Values of both models, shape (sweeps, seeds, prompts, images), and the true shares."""

    unlearned: Array
    final: Array
    unlearned_share: Array
    final_share: Array


def simulate(world: World, rng: np.random.Generator, sweeps: int) -> Sweeps:
    """Draw sweeps. The unlearned model has half of the seeds' effect: not all methods draw."""
    n, seeds, prompts, images = sweeps, world.seeds, world.prompts, world.images
    prompt = rng.normal(size=(2, n, 1, prompts, 1)) * world.prompt_sd
    prompt[1] = 0.6 * prompt[0] + 0.8 * prompt[1]
    if world.clusters is not None:
        concept = rng.normal(size=(2, n, 1, world.concepts, 1)) * world.concept_sd
        prompt = prompt + concept[:, :, :, world.clusters]
    seed = rng.normal(size=(n, seeds, 1, 1)) * world.seed_sd
    both = rng.normal(size=(n, seeds, prompts, 1)) * world.both_sd
    noise = rng.normal(size=(n, 1, prompts, images)) * NOISE_SD
    own = rng.normal(size=(2, n, seeds, prompts, images)) * NOISE_SD
    unlearned = world.unlearned + prompt[0] + seed / 2 + noise + own[0] > 0
    final = world.final + prompt[1] + seed + both + noise + own[1] > 0
    return Sweeps(
        unlearned.astype(float),
        final.astype(float),
        _share(world.unlearned, seed / 2, world, world.seed_sd / 2, 0.0),
        _share(world.final, seed, world, world.seed_sd, world.both_sd),
    )


def _share(mean: float, seed: Array, world: World, seed_sd: float, both_sd: float) -> Array:
    """The true share of each sweep: over all seeds, or of its one seed."""
    fixed = seed[:, 0, 0, 0] if world.seeds == 1 else np.zeros(len(seed))
    free = 0.0 if world.seeds == 1 else seed_sd**2
    asked = world.prompt_sd**2 + world.concept_sd**2
    share: Array = ndtr((mean + fixed) / np.sqrt(1 + asked + both_sd**2 + free))
    return share


@dataclass(frozen=True)
class Coverage:
    """The share of sweeps whose interval holds the truth, and the intervals' mean width."""

    covered: float
    width: float


def coverage_of_resurgence(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> Coverage:
    """Of `paired_interval`."""

    def interval(low: Array, now: Array, rng: np.random.Generator) -> Estimate:
        return paired_interval(np.ones_like(low), low, now, clusters=world.clusters).resurgence

    return _coverage(world, sweeps, rng_seed, interval, lambda s: s.final_share - s.unlearned_share)


def coverage_by_prompt(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> Coverage:
    """Of `paired_interval` that is not told which prompts are of one concept."""

    def interval(low: Array, now: Array, rng: np.random.Generator) -> Estimate:
        return paired_interval(np.ones_like(low), low, now).resurgence

    return _coverage(world, sweeps, rng_seed, interval, lambda s: s.final_share - s.unlearned_share)


def coverage_of_score(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> Coverage:
    """Of `mean_interval`, of the final score."""

    def interval(low: Array, now: Array, rng: np.random.Generator) -> Estimate:
        return mean_interval(now, clusters=world.clusters)

    return _coverage(world, sweeps, rng_seed, interval, lambda s: s.final_share)


def coverage_of_pigeonhole(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> Coverage:
    """Of percentiles of resampled prompts and, independently, resampled seeds (Owen, 2007)."""

    def interval(low: Array, now: Array, rng: np.random.Generator) -> Estimate:
        cells = (now - low).mean(axis=2)
        prompts, seeds = (_weights(rng, n) for n in (world.prompts, world.seeds))
        return _percentiles(np.einsum("rs,sp,rp->r", seeds, cells, prompts, optimize=True))

    return _coverage(world, sweeps, rng_seed, interval, lambda s: s.final_share - s.unlearned_share)


def coverage_of_prompts_only(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> Coverage:
    """Of percentiles of resampled prompts: seeds as if they were more images."""

    def interval(low: Array, now: Array, rng: np.random.Generator) -> Estimate:
        means = (now - low).mean(axis=(0, 2))
        return _percentiles(_weights(rng, world.prompts) @ means)

    return _coverage(world, sweeps, rng_seed, interval, lambda s: s.final_share - s.unlearned_share)


def _weights(rng: np.random.Generator, n: int) -> Array:
    """Shares of n things in resamples with replacement: shape (resamples, n)."""
    weights: Array = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    return weights


def _percentiles(resampled: Array) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(resampled.mean()), float(low), float(high))


def _coverage(
    world: World,
    sweeps: int,
    rng_seed: int,
    interval: Callable[[Array, Array, np.random.Generator], Estimate],
    truth: Callable[[Sweeps], Array],
) -> Coverage:
    rng = np.random.default_rng(rng_seed)
    covered, width = 0, 0.0
    for count in _chunks(sweeps):
        drawn = simulate(world, rng, count)
        for low, now, true in zip(drawn.unlearned, drawn.final, truth(drawn), strict=True):
            found = interval(low, now, rng)
            covered += found.low <= true <= found.high
            width += found.high - found.low
    return Coverage(covered / sweeps, width / sweeps)


def _chunks(sweeps: int) -> Iterator[int]:
    for begin in range(0, sweeps, CHUNK_SWEEPS):
        yield min(CHUNK_SWEEPS, sweeps - begin)


def power(world: World, sweeps: int = SWEEPS, rng_seed: int = 0) -> float:
    """The share of sweeps whose p-value is below 0.05."""
    rng = np.random.default_rng(rng_seed)
    found = 0
    for count in _chunks(sweeps):
        drawn = simulate(world, rng, count)
        for low, now in zip(drawn.unlearned, drawn.final, strict=True):
            found += paired_interval(np.ones_like(low), low, now).p < 0.05
    return found / sweeps


def main() -> None:
    """Print the table."""
    sweeps = int(sys.argv[1]) if len(sys.argv) > 1 else SWEEPS
    console = Console(width=140)
    heads = ("seeds", "prompts", "images", "prompt sd", "seed sd", "true resurgence")
    heads += ("covered", "width", "score covered", "pigeonhole", "prompts only")
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for world in (*USUAL, *HARD):
        ours = coverage_of_resurgence(world, sweeps)
        others = (coverage_of_score, coverage_of_pigeonhole, coverage_of_prompts_only)
        drawn = simulate(replace(world, seeds=2), np.random.default_rng(0), 1)
        table.add_row(
            *(str(n) for n in (world.seeds, world.prompts, world.images)),
            *(f"{sd:g}" for sd in (world.prompt_sd, world.seed_sd)),
            f"{(drawn.final_share - drawn.unlearned_share)[0]:.2f}",
            f"{ours.covered:.1%}",
            f"{ours.width:.2f}",
            *(f"{measure(world, sweeps).covered:.1%}" for measure in others),
        )
    console.print(table)
    heads = ("seeds", "concepts", "prompts", "concept sd", "covered", "score covered")
    table = Table(*heads, "by prompt alone", box=None, pad_edge=False, header_style="bold")
    for world in CONCEPTS:
        found = (
            coverage_of_resurgence(world, sweeps),
            coverage_of_score(world, sweeps),
            coverage_by_prompt(world, sweeps),
        )
        table.add_row(
            *(str(n) for n in (world.seeds, world.concepts, world.prompts)),
            f"{world.concept_sd:g}",
            *(f"{one.covered:.1%}" for one in found),
        )
    console.print(table)


if __name__ == "__main__":
    main()
