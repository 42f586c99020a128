"""Where on the way from noise to a picture a method's x_t is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Stop(NamedTuple):
    """A place on the way from noise to a picture at which x_t may be taken."""

    walked: Sequence[int]
    """The sampler's time steps that are taken from noise."""
    evaluated: range
    """Of these time steps one, at random, is the t at which x_t is evaluated."""


Stops = Callable[[Sequence[int], int], Sequence[Stop]]
"""(a sampler's time steps from the noisy side, how far apart they are) -> every `Stop`, each as
likely as the others."""


def at_the_samplers_steps(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t after the first k of N steps, k in 0 … N - 1, at the time step where step k starts."""
    return [Stop(timesteps[:k], range(t, t + 1)) for k, t in enumerate(timesteps)]


def as_in_2023(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as ESD's code of 2023 draws it, and what was built on that code.

    The sampler's first time step is left out, and x_t is taken after N - j of the others, j in
    0 … N - 1 (all N - 1 of them at j = 0, as at j = 1). t is uniform in [j, j + 1) spacings, for
    j ≥ 2 two to three spacings less one above the level at which x_t stands: with N = 50, 39 to 58.
    """
    steps, rest = len(timesteps), timesteps[1:]
    return [Stop(rest[: steps - j], range(spacing * j, spacing * (j + 1))) for j in range(steps)]


def as_sdd_released(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as SDD's released code draws it: after the first k of N steps, k in 0 … N - 1.

    t is uniform in [N - 1 - k, N - k) spacings, the sampler's step on which x_t stands. At k = 0,
    where x_t should be pure noise, the code runs all N steps, and a clean picture is evaluated at
    the highest t.
    """
    steps = len(timesteps)
    return [
        Stop(timesteps[: k or steps], range(spacing * (steps - 1 - k), spacing * (steps - k)))
        for k in range(steps)
    ]


def as_stereo_released(timesteps: Sequence[int], spacing: int) -> list[Stop]:
    """x_t as STEREO's released code draws it: after the first k of N steps, k in 1 … N - 2.

    t is a step less one above the level at which x_t stands.
    """
    return [
        Stop(timesteps[:k], range(t + spacing - 1, t + spacing))
        for k, t in list(enumerate(timesteps))[1:-1]
    ]


def drawing_passes(
    sampler_steps: int, batch_size: int, stops: Stops = at_the_samplers_steps
) -> int:
    """UNet passes of drawing x_t under guidance, on average over the stops."""
    possible = stops(range(sampler_steps), 1)
    return round(2 * batch_size * sum(len(stop.walked) for stop in possible) / len(possible))
