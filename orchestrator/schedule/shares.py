"""How many workers each of several heads may have: by priority, none left idle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Wish:
    """What a head could use: so many workers, with that priority beside others."""

    workers: int
    priority: float


def shares(wishes: Mapping[str, Wish], room: float) -> dict[str, int]:
    """By head the workers it may have, of the `room` that there is.

    In proportion to the priorities (weighted max-min fairness: Bertsekas and Gallager, Data
    Networks, 6.5.2), so that what one does not need goes to the others. Everyone that wants some
    may have one.
    """
    left = dict(wishes)
    given: dict[str, float] = {}
    while left:
        weight = sum(wish.priority for wish in left.values())
        content = [n for n, w in left.items() if w.workers <= room * w.priority / weight]
        if not content:
            given |= {name: room * wish.priority / weight for name, wish in left.items()}
            break
        for name in content:
            wish = left.pop(name)
            given[name] = wish.workers
            room -= wish.workers
    return _whole(given, wishes)


def _whole(given: Mapping[str, float], wishes: Mapping[str, Wish]) -> dict[str, int]:
    """Whole workers with the same sum; the largest remainders are rounded up."""
    floors = {name: math.floor(value + 1e-9) for name, value in given.items()}
    spare = math.floor(sum(given.values()) + 1e-9) - sum(floors.values())
    by_rest: Sequence[str] = sorted(given, key=lambda name: (floors[name] - given[name], name))
    for name in by_rest[:spare]:
        floors[name] += 1
    return {name: max(floors[name], min(1, wishes[name].workers)) for name in given}
