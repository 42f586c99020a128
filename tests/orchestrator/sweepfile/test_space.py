"""The space of a search: precision, conditions, sizes, corners and how much of it was tried."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orchestrator.sweep.space import Categorical, Range, Space, point_key

METHOD = Categorical("unlearn.method", ("esd", "uce"))
GROUP = Categorical("unlearn.esd.group", ("x", "u"), when=(("unlearn.method", ("esd",)),))
ADAPTER = Categorical("finetune.adapter", ("full", "lora"))
RANK = Range("finetune.lora_rank", 1, 4, is_int=True, when=(("finetune.adapter", ("lora",)),))
RATE = Range("finetune.learning_rate", 1e-5, 3e-3, log=True)
STEPS = Range("finetune.steps", 25, 400, is_int=True, step=25)


@pytest.mark.parametrize(
    ("dimension", "value", "snapped"),
    [
        (RATE, 1.2345e-4, 1.2e-4),
        (RATE, 9e-6, 1e-5),
        (RATE, 2.999e-3, 3e-3),
        (Range("x", 0.0, 1.0, digits=3), 0.123456, 0.123),
        (Range("x", 0.333, 0.777), 0.3331, 0.333),  # an end may be finer than the digits
        (Range("x", 0, 1), 0.001, 0.001),
        (Range("x", 0.0, 1.0, step=0.1), 0.3000001, 0.3),
        (Range("x", 0.1, 1.0, step=0.3), 0.65, 0.7),
        (STEPS, 37.4, 25),
        (STEPS, 38, 50),
        (STEPS, 9999, 400),
        (STEPS, -3, 25),
        (Range("n", 1, 16, is_int=True, log=True), 5.6, 6),
        (Range("n", 25, 113, is_int=True, step=25), 113, 100),
    ],
)
def test_values_snap_to_the_declared_precision(
    dimension: Range, value: float, snapped: float
) -> None:
    found = dimension.snap(value)
    assert found == snapped
    assert type(found) is (int if dimension.is_int else float)
    assert dimension.snap(found) == found


@pytest.mark.parametrize(
    ("dimension", "size"),
    [
        (ADAPTER, 2),
        (RATE, None),
        (STEPS, 16),
        (Range("n", 1, 16, is_int=True), 16),
        (Range("n", 1, 16, is_int=True, log=True), 16),
        (Range("n", 25, 113, is_int=True, step=25), 4),
        (Range("x", 0.0, 1.0, step=0.1), 11),
        (Range("x", 0.1, 0.7, step=0.2), 4),
    ],
)
def test_a_setting_knows_how_many_values_it_has(
    dimension: Categorical | Range, size: int | None
) -> None:
    assert dimension.size == size
    if size is not None:
        values = [dimension.at(index) for index in range(size)]
        assert len(set(values)) == size
        if isinstance(dimension, Range):
            assert values[0] == dimension.low
            assert values[-1] <= dimension.high


@pytest.mark.parametrize(
    "dimension",
    [STEPS, Range("n", 1, 3, is_int=True), Range("x", 0.0, 1.0, step=0.5), ADAPTER],
)
def test_values_by_chance_are_equally_likely(dimension: Categorical | Range) -> None:
    rng = np.random.default_rng(0)
    drawn = [dimension.draw(rng) for _ in range(8000)]
    size = dimension.size or 0
    for index in range(size):
        share = drawn.count(dimension.at(index)) / len(drawn)
        assert share == pytest.approx(1 / size, abs=4 * math.sqrt(1 / size / len(drawn)))


def test_values_by_chance_follow_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    drawn = [RATE.draw(rng) for _ in range(4000)]
    assert all(RATE.low <= value <= RATE.high for value in drawn)
    middle = math.sqrt(RATE.low * RATE.high)
    assert sum(value < middle for value in drawn) / len(drawn) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("dimensions", "size"),
    [
        ((METHOD, GROUP), 3),
        ((METHOD, GROUP, ADAPTER, RANK), 3 * (1 + 4)),
        ((ADAPTER, RANK, STEPS), (1 + 4) * 16),
        ((ADAPTER, RATE), None),
        ((), 1),
        ((Categorical("a", (1, 2, 3)), Categorical("b", (1, 2), when=(("a", (1, 3)),))), 5),
        (
            (
                METHOD,
                GROUP,
                Categorical("c", (1, 2, 3), when=(("unlearn.esd.group", ("u",)),)),
            ),
            1 + 1 + 3,
        ),
    ],
)
def test_size_counts_every_point_once(
    dimensions: tuple[Categorical | Range, ...], size: int | None
) -> None:
    space = Space(dimensions)
    assert space.size == size
    if size is None:
        with pytest.raises(ValueError, match="on no grid"):
            next(space.points())
        return
    points = list(space.points())
    assert len(points) == size
    assert len({point_key(point) for point in points}) == size


def test_a_large_space_is_counted_without_going_through_it() -> None:
    steps = [Range(f"n{i}", 1, 100, is_int=True) for i in range(6)]
    assert Space((*steps, ADAPTER, RANK)).size == 100**6 * 5


def test_points_move_the_last_setting_fastest() -> None:
    found = [tuple(point.values()) for point in Space((METHOD, GROUP)).points()]
    assert found == [("esd", "x"), ("esd", "u"), ("uce",)]


def test_settings_whose_condition_fails_are_not_in_the_point() -> None:
    space = Space((ADAPTER, RANK))
    rng = np.random.default_rng(0)
    for point in (space.draw(rng) for _ in range(50)):
        assert ("finetune.lora_rank" in point) == (point["finetune.adapter"] == "lora")


def test_within_holds_settings_fixed_and_drops_what_hangs_on_others() -> None:
    chained = Range("finetune.x", 0.0, 1.0, when=(("unlearn.esd.group", ("u",)),))
    space = Space((METHOD, GROUP, chained, ADAPTER))
    esd = space.within({"unlearn.method": "esd"})
    assert [d.name for d in esd.dimensions] == [
        "unlearn.esd.group",
        "finetune.x",
        "finetune.adapter",
    ]
    assert esd.dimensions[0].when == ()
    assert esd.fixed == {"unlearn.method": "esd"}
    uce = space.within({"unlearn.method": "uce"})
    assert [d.name for d in uce.dimensions] == ["finetune.adapter"]
    assert uce.size == 2
    assert [point["unlearn.method"] for point in uce.points()] == ["uce", "uce"]


def test_within_may_leave_one_point() -> None:
    space = Space((GROUP,)).within({"unlearn.method": "uce"})
    assert space.size == 1
    assert list(space.points()) == list(space.corners()) == [{"unlearn.method": "uce"}]


def test_points_that_differ_in_their_order_are_one() -> None:
    assert point_key({"a": 1, "b": [1, 2]}) == point_key({"b": [1, 2], "a": 1})
    assert point_key({"a": 1}) != point_key({"a": 2})


def test_corners_have_every_listed_value_and_both_ends_of_every_range() -> None:
    third = Categorical("finetune.schedule", ("constant", "linear", "cosine"))
    both = (("finetune.adapter", ("lora",)), ("unlearn.method", ("uce",)))
    deep = Categorical("finetune.lora_targets", ("attention", "cross_attention"), when=both)
    dimensions = (METHOD, GROUP, ADAPTER, RANK, deep, RATE, STEPS, third)
    corners = list(Space(dimensions).corners())
    for dimension in dimensions:
        values = {point[dimension.name] for point in corners if dimension.name in point}
        if isinstance(dimension, Categorical):
            assert values == set(dimension.values)
        else:
            assert values == {dimension.low, dimension.high}
    assert len(corners) < 40


def test_distance_is_the_largest_gap() -> None:
    space = Space((ADAPTER, RANK, RATE, STEPS))
    full = {"finetune.adapter": "full", "finetune.learning_rate": 1e-4, "finetune.steps": 100}
    assert space.distance(full, full) == 0
    assert space.distance(full, {**full, "finetune.steps": 175}) == pytest.approx(75 / 375)
    decade = math.log(10) / math.log(300)
    assert space.distance(full, {**full, "finetune.learning_rate": 1e-3}) == pytest.approx(decade)
    lora = {**full, "finetune.adapter": "lora", "finetune.lora_rank": 1}
    assert space.distance(full, lora) == 1
    assert space.distance(lora, {**lora, "finetune.lora_rank": 2}) == pytest.approx(1 / 3)


def test_coverage_of_a_range_is_twice_the_radius() -> None:
    space = Space((Range("x", 0.0, 1.0, digits=4),))
    assert space.coverage([], 0.1) == 0
    assert space.coverage([{"x": 0.5}], 0.1) == pytest.approx(0.2, abs=0.02)
    assert space.coverage([{"x": 0.0}], 0.1) == pytest.approx(0.1, abs=0.02)
    assert space.coverage([{"x": 0.3}, {"x": 0.32}], 0.1) == pytest.approx(0.22, abs=0.02)
    assert space.coverage([{"x": x / 10} for x in range(11)], 0.1) == 1


def test_coverage_is_a_share_of_the_volume_and_of_the_choices() -> None:
    square = Space((Range("x", 0.0, 1.0, digits=4), Range("y", 1.0, 1e4, log=True, digits=4)))
    assert square.coverage([{"x": 0.5, "y": 100.0}], 0.2) == pytest.approx(0.16, abs=0.02)
    halves = Space((ADAPTER, Range("x", 0.0, 1.0, digits=4)))
    tried = [{"finetune.adapter": "full", "x": 0.5}]
    assert halves.coverage(tried, 0.1) == pytest.approx(0.1, abs=0.02)


def test_a_tried_grid_is_covered() -> None:
    """Neighbours that are exactly as far as the radius count, whatever rounding says."""
    space = Space((Range("x", 0.0, 1.0, step=0.1),))
    assert space.coverage([{"x": 0.7}], 0.1) == pytest.approx(3 / 11, abs=0.02)


def test_a_space_is_described_by_all_that_makes_it() -> None:
    one = Space((ADAPTER, RANK, RATE, STEPS)).described()
    assert one["finetune.adapter"] == {"values": ["full", "lora"]}
    assert one["finetune.lora_rank"]["when"] == {"finetune.adapter": ["lora"]}
    others = (
        Range("finetune.learning_rate", 1e-5, 3e-3),
        Range("finetune.learning_rate", 1e-5, 3e-3, log=True, digits=3),
        Range("finetune.learning_rate", 1e-5, 1e-3, log=True),
    )
    for other in others:
        assert Space((ADAPTER, RANK, other, STEPS)).described() != one
