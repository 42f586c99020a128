"""The space that a search looks through: settings by their flat names, some only under conditions.

A point maps the names that are active in it to values. Values snap to the precision that the space
declares, so that two points which differ in noise only are one point, and one entry of the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.core.digest import canonical_json
from orchestrator.sweep.trial import Scalar, scalar

if TYPE_CHECKING:
    import numpy as np


Point = Mapping[str, Any]
Condition = tuple[str, tuple[Any, ...]]
"""Another setting's name and the values under which a setting is active."""
COVERAGE_POINTS = 4_096


def point_key(point: Point) -> str:
    """What two equal points share."""
    return canonical_json(dict(point))


@dataclass(frozen=True)
class Categorical:
    """A setting with a list of values."""

    name: str
    values: tuple[Any, ...]
    when: tuple[Condition, ...] = ()

    @property
    def labels(self) -> tuple[Scalar, ...]:
        """The values as scalars; a list as its JSON."""
        return tuple(map(scalar, self.values))

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def at(self, index: int) -> Any:
        """The value with that index."""
        return self.values[index]

    def draw(self, rng: np.random.Generator) -> Any:
        """A value by chance."""
        return self.values[int(rng.integers(len(self.values)))]

    def gap(self, one: Any, other: Any) -> float:
        """0 for the same value, 1 for another."""
        return 0.0 if one == other else 1.0

    def described(self) -> dict[str, Any]:
        """As JSON: what makes it this setting and no other."""
        return {"values": list(self.values), **_described(self.when)}


@dataclass(frozen=True)
class Range:
    """A setting with bounds, both included.

    `step` makes it a grid; `digits` is how many significant digits a value without a grid has.
    """

    name: str
    low: float
    high: float
    is_int: bool = False
    log: bool = False
    step: float | None = None
    digits: int = 2
    when: tuple[Condition, ...] = ()

    @property
    def size(self) -> int | None:
        """How many values there are; None where they are not on a grid."""
        if self.step is None:
            return int(self.high - self.low) + 1 if self.is_int else None
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def at(self, index: int) -> Any:
        """The value with that index on the grid."""
        return self.snap(self.low + index * (self.step or 1))

    def snap(self, value: float) -> Any:
        """The nearest value of the range that has the declared precision."""
        if self.size is not None:
            step = self.step or 1
            index = min(self.size - 1, max(0, round((value - self.low) / step)))
            value = self.low + index * step
            return round(value) if self.is_int else float(f"{value:.12g}")
        return float(min(self.high, max(self.low, float(f"{value:.{self.digits}g}"))))

    def unit(self, value: float) -> float:
        """Where in the range the value lies: 0 at its low end, 1 at its high end."""
        if self.high == self.low:
            return 0.0
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def draw(self, rng: np.random.Generator) -> Any:
        """A value by chance, uniform in the range (in its logarithm if that is how it is laid)."""
        if self.log:
            return self.snap(self.low * (self.high / self.low) ** float(rng.random()))
        if self.size is not None:
            return self.at(int(rng.integers(self.size)))
        return self.snap(self.low + (self.high - self.low) * float(rng.random()))

    def gap(self, one: float, other: float) -> float:
        """The distance of two values as a share of the range."""
        return abs(self.unit(one) - self.unit(other))

    def described(self) -> dict[str, Any]:
        """As JSON: what makes it this setting and no other."""
        kind = "int" if self.is_int else "float"
        found: dict[str, Any] = {kind: [self.low, self.high], "log": self.log, "step": self.step}
        if self.step is None and not self.is_int:
            found["digits"] = self.digits
        return {**found, **_described(self.when)}


Dimension = Categorical | Range


def _is_active(dimension: Dimension, chosen: Point) -> bool:
    return all(name in chosen and chosen[name] in values for name, values in dimension.when)


@dataclass(frozen=True)
class Space:
    """Settings in the order in which they are chosen; a condition looks at those before it.

    `fixed` are settings that every point has and that are not searched.
    """

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def within(self, fixed: Point) -> Space:
        """The part of the space where these settings have these values."""
        known = {**self.fixed, **fixed}
        kept: dict[str, Dimension] = {}
        for dimension in self.dimensions:
            if dimension.name in fixed:
                continue
            open_ones = tuple(c for c in dimension.when if c[0] not in known)
            decided = [c for c in dimension.when if c[0] in known]
            # What hangs on a setting that is gone is gone too.
            if all(name in kept for name, _ in open_ones) and all(
                known[name] in values for name, values in decided
            ):
                kept[dimension.name] = replace(dimension, when=open_ones)
        return Space(tuple(kept.values()), known)

    def active(self, chosen: Point) -> Iterator[Dimension]:
        """The settings to choose, given those that have been chosen while iterating."""
        for dimension in self.dimensions:
            if _is_active(dimension, chosen):
                yield dimension

    def searched(self, point: Point) -> dict[str, Any]:
        """A point without what is fixed, its values as scalars."""
        return {d.name: scalar(point[d.name]) for d in self.dimensions if d.name in point}

    @cached_property
    def size(self) -> int | None:
        """How many points there are; None where some setting is on no grid."""
        if any(dimension.size is None for dimension in self.dimensions):
            return None
        return self._count({}, self.dimensions)

    def _count(self, chosen: dict[str, Any], left: Sequence[Dimension]) -> int:
        """Settings that no condition looks at multiply; the others are gone through."""
        total = 1
        asked = {name for dimension in left for name, _ in dimension.when}
        for number, dimension in enumerate(left):
            if not _is_active(dimension, chosen):
                continue
            size = dimension.size or 0
            if dimension.name not in asked:
                total *= size
                continue
            rest = left[number + 1 :]
            return total * sum(
                self._count({**chosen, dimension.name: dimension.at(i)}, rest) for i in range(size)
            )
        return total

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point, the last setting moving fastest. The space must be on a grid."""
        if self.size is None:
            raise ValueError("a space with a setting on no grid has no list of points")
        yield from self._points({}, 0)

    def _points(self, chosen: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        if depth == len(self.dimensions):
            yield {**self.fixed, **chosen}
            return
        dimension = self.dimensions[depth]
        if not _is_active(dimension, chosen):
            yield from self._points(chosen, depth + 1)
            return
        for index in range(dimension.size or 0):
            yield from self._points({**chosen, dimension.name: dimension.at(index)}, depth + 1)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A point by chance, each setting uniformly."""
        chosen: dict[str, Any] = {}
        for dimension in self.active(chosen):
            chosen[dimension.name] = dimension.draw(rng)
        return {**self.fixed, **chosen}

    def corners(self) -> Iterator[dict[str, Any]]:
        """Few points that between them have both ends of every range and every listed value."""
        found = {}
        for target in self.dimensions:
            for index in range(target.size if isinstance(target, Categorical) else 1):
                allowed = self._allowed(target, index)
                for at_high in (False, True):
                    point = self._corner(allowed, index, at_high)
                    found[point_key(point)] = point
        yield from found.values() or [dict(self.fixed)]

    def _allowed(self, target: Dimension, index: int) -> dict[str, Sequence[Any]]:
        """The values of other settings under which a setting is there, and its own."""
        allowed: dict[str, Sequence[Any]] = {target.name: ()}
        if isinstance(target, Categorical):
            allowed[target.name] = (target.at(index),)
        for dimension in reversed(self.dimensions):
            for name, values in dimension.when if dimension.name in allowed else ():
                allowed[name] = [v for v in allowed.get(name, values) if v in values]
        return allowed

    def _corner(
        self, allowed: Mapping[str, Sequence[Any]], index: int, at_high: bool
    ) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        for d in self.active(chosen):
            if isinstance(d, Categorical):
                values = allowed.get(d.name) or d.values
                chosen[d.name] = values[index % len(values)]
            else:
                chosen[d.name] = d.snap(d.high if at_high else d.low)
        return {**self.fixed, **chosen}

    def distance(self, one: Point, other: Point) -> float:
        """The largest gap of any setting: 1 where a choice differs, else a share of the range."""
        gaps = [0.0]
        for dimension in self.dimensions:
            name = dimension.name
            if (name in one) != (name in other):
                return 1.0
            if name in one:
                gaps.append(dimension.gap(one[name], other[name]))
        return max(gaps)

    def coverage(self, tried: Iterable[Point], radius: float) -> float:
        """Share of the space's volume within `radius` (`distance`) of a tried point."""
        found = Coverage(self, radius)
        for point in tried:
            found.add(point)
        return found.share

    def described(self) -> dict[str, Any]:
        """As JSON, to tell whether two spaces are one."""
        return {dimension.name: dimension.described() for dimension in self.dimensions}


class Coverage:
    """How much of a space is near the points that were added so far.

    By simulation: points are drawn as `draw` draws them, the same ones each time.
    """

    def __init__(self, space: Space, radius: float) -> None:
        import numpy as np

        self._space = space
        self._reach = radius + 1e-9  # 0.8 - 0.7 is more than 0.1
        rng = np.random.default_rng(0)
        self._far = [space.draw(rng) for _ in range(COVERAGE_POINTS)]

    def add(self, point: Point) -> None:
        """A point was tried."""
        self._far = [d for d in self._far if self._space.distance(d, point) > self._reach]

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return 1 - len(self._far) / COVERAGE_POINTS


def _described(when: Iterable[Condition]) -> dict[str, Any]:
    conditions = {name: list(values) for name, values in when}
    return {"when": conditions} if conditions else {}
