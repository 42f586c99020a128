"""What a search finds on the recorded surface is what going through all of it finds.

The surface has resurgence only; what a setting leaves of the retained concepts is made up here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search import AXES, SURFACE, Surface
from orchestrator.core.errors import SweepError
from orchestrator.plan.plan import PlannedTrial
from orchestrator.results.groups import Group, GroupNumbers
from orchestrator.results.measure import Measured, Pictures, Scores
from orchestrator.stats.paired import Estimate, Paired
from orchestrator.study.defence import judged
from orchestrator.study.points import PointPlanner, numbers_of
from orchestrator.study.study import Study
from orchestrator.study.tried import Tried, best, counted
from orchestrator.study.worst_case import (
    breaks_defence,
    confirmed,
    keeping,
    seen,
    worst_concept,
    worst_member,
)
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.filterwarnings("ignore:.* experimental")

TEXT = """
name: surface
base: shapes
concept: star
edits: [{unlearn: salun}, {finetune: {}}]
evaluate: {metrics: [concept_accuracy]}
search:
  maximize: resurgence
  space:
    finetune.dataset: [related, unrelated, novel]
    finetune.adapter: [full, lora]
    finetune.learning_rate: [7.0e-4, 1.3e-3, 2.5e-3]
    finetune.steps: {int: [50, 200], step: 50}
  sampler: grid
  trials: 1000
  confirm: {top: 2}
"""
BASE_RETAINED = 0.9
Axes = tuple[Any, ...]


def retained_at(point: Mapping[str, Any]) -> float:
    """Less, the more the weights were trained; made up."""
    lost = point["finetune.learning_rate"] * point["finetune.steps"]
    return BASE_RETAINED / (1 + lost) - 0.01 * (point["finetune.adapter"] == "full")


class World:
    """The surface as a search sees it, and as a table of all its values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.surface = Surface(SURFACE)

    @cached_property
    def everything(self) -> dict[Axes, float]:
        """Every value of the part that is searched."""
        points = (dict(zip(AXES, axes, strict=True)) for axes in self.surface.values)
        part = PointPlanner(parse(TEXT)).search.space
        return {
            axes: float(value)
            for (axes, value), point in zip(self.surface.values.items(), points, strict=True)
            if point in part.points()
        }

    def measured(self, planned: PlannedTrial) -> Measured:
        params = planned.trial.params
        value = self.surface.at(params)
        return Measured(
            planned=planned,
            status="done",
            base=Scores(1.0, BASE_RETAINED),
            unlearned=Scores(0.1, 0.85),
            final=Scores(0.1 + value, retained_at(params)),
            control=None,
            paired=Paired(Estimate(value, value, value), None, 0.5),
            unlearning_failed=False,
            model_ruined=False,
            pictures=Pictures(),
            metrics={},
            seconds=1.0,
        )

    def searched(
        self, text: str, change: Callable[[Measured], Measured] = lambda measured: measured
    ) -> tuple[PointPlanner, list[Tried]]:
        """The search until nothing is left to try; `change` makes another surface of this one."""
        points = PointPlanner(parse(text))
        search = points.search
        storage = f"journal://{self.folder / 'studies.log'}"
        study = Study(storage, "surface", search, search.space, identity=points.identity({}))
        while (tried := study.ask()) is not None:
            trials = [change(self.measured(t)) for t in points.measuring(tried.point).trials]
            numbers = numbers_of(trials, tried.point, search)
            value = numbers.found[search.goals[0].name]
            study.tell(tried.number, [value], numbers.found, numbers.violations)
        return points, study.tried()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def axes_of(tried: Tried) -> Axes:
    return tuple(tried.point[axis] for axis in AXES)


def worst_of(values: Mapping[Axes, float], least: float) -> Axes:
    """By enumeration: the largest value of those that leave that much of what is retained."""
    kept = {
        a: v for a, v in values.items() if retained_at(dict(zip(AXES, a, strict=True))) >= least
    }
    assert 0 < len(kept) < len(values)
    return max(kept, key=lambda axes: kept[axes])


def with_bounds(bounds: str) -> str:
    return TEXT.replace("  space:", f"  subject_to: {{{bounds}}}\n  space:")


@pytest.mark.parametrize(
    ("bounds", "least"),
    [
        ('retained: ">= 90% of base"', 0.9 * BASE_RETAINED),
        ('retained_accuracy: ">= 90% of unlearned"', 0.9 * 0.85),
        ('retained_drop: "<= 0.1"', BASE_RETAINED - 0.1),
    ],
)
def test_a_relative_bound_gives_what_enumeration_gives(
    bounds: str, least: float, world: World
) -> None:
    points, trials = world.searched(with_bounds(bounds))
    assert len(counted(trials)) == len(world.everything)
    [worst] = best(trials, points.search.goals, 1)
    assert axes_of(worst) == worst_of(world.everything, least)
    assert worst.values == (pytest.approx(world.everything[axes_of(worst)]),)


def test_several_bounds_of_one_study_give_what_enumeration_gives_for_each(world: World) -> None:
    shares = (0.95, 0.85, 0.7)
    points, trials = world.searched(
        with_bounds('retained: [">= 85% of base", ">= 95% of base", ">= 70% of base"]')
    )
    levels = points.search.bounds
    assert [bounds[0].value for bounds in levels] == [0.7, 0.85, 0.95]  # the loosest first
    found = {}
    for bounds in levels:
        [worst] = best(keeping(trials, bounds), points.search.goals, 1)
        found[bounds[0].value] = axes_of(worst)
    assert found == {s: worst_of(world.everything, s * BASE_RETAINED) for s in shares}
    assert len(set(found.values())) > 1
    # The best of each are confirmed, those of several bounds once.
    again = [axes_of(one) for one in confirmed(trials, points)]
    assert set(found.values()) <= set(again)
    assert len(again) == len(set(again))


def aggregated(how: str, bounds: str = "") -> str:
    """The data sets are measured together; the other settings are searched."""
    text = with_bounds(bounds) if bounds else TEXT
    return (
        text.replace("    finetune.dataset: [related, unrelated, novel]\n", "")
        .replace("{finetune: {}}", "{finetune: {dataset: [related, unrelated, novel]}}")
        .replace("  space:", f"  aggregate: {how}\n  space:")
    )


def test_the_largest_over_an_axis_is_what_enumeration_gives(world: World) -> None:
    points, trials = world.searched(
        aggregated("{max: finetune.dataset}", 'retained: ">= 90% of base"')
    )
    assert len(counted(trials)) == len(world.everything) / 3
    [worst] = best(trials, points.search.goals, 1)
    dataset = worst_member(worst, points.search)
    found = (dataset, *(worst.point[axis] for axis in AXES[1:]))
    assert found == worst_of(world.everything, 0.9 * BASE_RETAINED)
    assert worst.numbers[f"resurgence of {dataset}"] == worst.values[0]


def test_the_mean_over_an_axis_is_what_enumeration_gives(world: World) -> None:
    points, trials = world.searched(aggregated("{mean: finetune.dataset}"))
    [worst] = best(trials, points.search.goals, 1)
    means = {
        rest: sum(
            world.everything[(dataset, *rest)] for dataset in ("related", "unrelated", "novel")
        )
        / 3
        for rest in {axes[1:] for axes in world.everything}
    }
    assert worst.values[0] == pytest.approx(max(means.values()))
    assert means[tuple(worst.point[axis] for axis in AXES[1:])] == pytest.approx(worst.values[0])


def test_for_each_gives_its_axes_to_an_aggregate(world: World) -> None:
    one = parse(aggregated("max\n  for_each: finetune.dataset")).search
    other = parse(aggregated("{max: [finetune.dataset]}")).search
    assert one is not None and other is not None
    assert one.aggregate == other.aggregate
    assert one.for_each == ()


def test_of_what_the_base_has_not_there_is_no_share(world: World) -> None:
    points = PointPlanner(parse(with_bounds('never_known: "<= 90% of base"')))
    point = next(points.search.space.points())
    trials = [world.measured(t) for t in points.measuring(point).trials]
    strange = [
        Measured(**{**vars(m), "base": Scores(1.0, 0.9, 0.0), "final": Scores(0.3, 0.8, 0.0)})
        for m in trials
    ]
    numbers = numbers_of(strange, point, points.search)
    assert numbers.missing == "never_known <= 90% of base: base.never_known is 0, and has no share"


def test_a_value_that_broke_a_bound_is_not_the_largest(world: World) -> None:
    """Of the aggregated values only those that keep the bounds count, while any does."""
    points = PointPlanner(parse(aggregated("{max: finetune.dataset}", 'retained: ">= 0.8"')))
    point = next(points.search.space.points())
    trials = [world.measured(t) for t in points.measuring(point).trials]
    values = itertools.cycle([(0.2, 0.85), (0.9, 0.1), (0.4, 0.85)])
    changed = [
        Measured(
            **{
                **vars(m),
                "paired": Paired(Estimate(value, value, value), None, 0.5),
                "final": Scores(value, retained),
            }
        )
        for m, (value, retained) in zip(trials, values, strict=False)
    ]
    numbers = numbers_of(changed, point, points.search)
    assert numbers.found["resurgence"] == 0.4
    assert numbers.found["resurgence of novel"] == 0.4
    assert "resurgence of unrelated" not in numbers.found
    assert all(v <= 0 for v in numbers.violations.values())


SHARES = (0.95, 0.85, 0.7)
LEVELS = 'retained: [">= 85% of base", ">= 95% of base", ">= 70% of base"]'


def harsher(measured: Measured) -> Measured:
    """The same where related pictures cost more of what is retained, so that bounds tell them."""
    if measured.planned.trial.params["finetune.dataset"] != "related":
        return measured
    final = Scores(measured.final.erased, (measured.final.retained or 0.0) - 0.1)
    return Measured(**{**vars(measured), "final": final})


def retained_of(axes: Axes) -> float:
    """What `harsher` leaves."""
    return retained_at(dict(zip(AXES, axes, strict=True))) - 0.1 * (axes[0] == "related")


def test_several_bounds_of_the_largest_give_what_enumeration_gives_for_each(world: World) -> None:
    points, trials = world.searched(aggregated("{max: finetune.dataset}", LEVELS), harsher)
    search, found = points.search, {}
    for bounds in search.bounds:
        told = seen(trials, search, bounds)
        [worst] = best(keeping(told, bounds), search.goals, 1)
        dataset = worst_member(worst, search)
        found[bounds[0].value] = (dataset, *(worst.point[axis] for axis in AXES[1:]))
        assert worst.values == (pytest.approx(world.everything[found[bounds[0].value]]),)
    for share in SHARES:
        kept = {
            axes: value
            for axes, value in world.everything.items()
            if retained_of(axes) >= share * BASE_RETAINED
        }
        assert found[share] == max(kept, key=lambda axes: kept[axes])
    assert len(set(found.values())) > 1
    assert {one.point["finetune.steps"] for one in confirmed(trials, points)}


def test_several_bounds_of_the_mean_are_kept_by_each_value(world: World) -> None:
    points, trials = world.searched(aggregated("{mean: finetune.dataset}", LEVELS), harsher)
    search = points.search
    rests = {axes[1:] for axes in world.everything}
    datasets, counts = ("related", "unrelated", "novel"), []
    for bounds in search.bounds:
        least = bounds[0].value * BASE_RETAINED
        means = {
            rest: sum(world.everything[(d, *rest)] for d in datasets) / 3
            for rest in rests
            if all(retained_of((d, *rest)) >= least for d in datasets)
        }
        kept = keeping(seen(trials, search, bounds), bounds)
        assert len(kept) == len(means)
        counts.append(len(kept))
        for worst in best(kept, search.goals, 1):
            assert worst.values[0] == pytest.approx(max(means.values()))
    assert counts[0] > counts[1] > counts[2] == 0  # the tightest is too much for one of them


def defending(how: str) -> str:
    outer = "defend: {space: {unlearn.salun.iterations: [50, 100, 150]}}"
    return aggregated(how).replace("  space:", f"  {outer}\n  space:", 1)


@pytest.mark.parametrize("how", ["max", "mean"])
def test_a_defence_of_an_aggregate_holds_on_every_value(how: str, world: World) -> None:
    """More iterations leave less to come back; with the most, one data set's unlearning failed."""
    points = PointPlanner(parse(defending(f"{{{how}: finetune.dataset}}")))
    search, found = points.search, {}
    assert search.defend is not None

    def measured(planned: PlannedTrial, defence: int) -> Measured:
        whole = world.measured(planned)
        value = whole.paired.resurgence.value * 50 / defence if whole.paired else 0.0
        failed = defence == 150 and planned.trial.params["finetune.dataset"] == "novel"
        paired = Paired(Estimate(value, value, value), None, 0.5)
        return Measured(**{**vars(whole), "paired": paired, "unlearning_failed": failed})

    for defence in (50, 100, 150):
        tried = []
        for number, inner in enumerate(search.space.points()):
            point = {**inner, "unlearn.salun.iterations": defence}
            trials = [measured(t, defence) for t in points.measuring(point).trials]
            numbers = numbers_of(trials, point, search)
            feasible = all(v <= 0 for v in numbers.violations.values())
            values = (numbers.found["resurgence"],)
            tried.append(
                Tried(number, "done", point, values, numbers.found, feasible, None, None, {}, 0, 0)
            )
        assert breaks_defence(search, tried) == (defence == 150)
        told = judged(search, tried)
        assert told is not None
        value, numbers = told
        found[defence] = value, all(v <= 0 for v in numbers.violations.values())
    datasets = ("related", "unrelated", "novel")
    over = max if how == "max" else lambda values: sum(values) / 3
    worst = max(
        over([world.everything[(d, *rest)] for d in datasets])
        for rest in {axes[1:] for axes in world.everything}
    )
    assert found[50] == (pytest.approx(worst), True)
    assert found[100] == (pytest.approx(worst / 2), True)
    assert not found[150][1]


def test_the_worst_concept_of_a_set_is_what_enumeration_gives(world: World) -> None:
    """Hearts come back with LoRA most of all, stars as the surface has it."""

    def hearts(axes: Axes) -> float:
        return 0.9 * world.everything[axes] + (0.3 if axes[1] == "lora" else 0.0)

    def of_set(measured: Measured) -> Measured:
        params = measured.planned.trial.params
        axes = tuple(params[axis] for axis in AXES)
        zero = Estimate(0.0, 0.0, 0.0)
        groups = []
        for concept, value in (("star", world.everything[axes]), ("heart", hearts(axes))):
            paired = Paired(Estimate(value, value, value), None, 0.5)
            group = Group("erased", concept)
            groups.append(GroupNumbers(group, 1.0, 0.1, 0.1 + value, paired, zero, zero))
        return Measured(**{**vars(measured), "groups": tuple(groups)})

    text = TEXT.replace("concept: star", "concept: [[star, heart]]")
    text = text.replace("maximize: resurgence", "maximize: worst_resurgence")
    points, trials = world.searched(text, of_set)
    [worst] = best(trials, points.search.goals, 1)
    every = {
        (concept, axes): value
        for axes, star in world.everything.items()
        for concept, value in (("star", star), ("heart", hearts(axes)))
    }
    most = max(every, key=lambda key: every[key])
    assert (worst_concept(worst), axes_of(worst)) == most
    assert worst.values[0] == pytest.approx(every[most])


def test_the_worst_of_one_concept_is_its_own(world: World) -> None:
    text = TEXT.replace("maximize: resurgence", "maximize: worst_resurgence")
    points, trials = world.searched(text)
    [worst] = best(trials, points.search.goals, 1)
    assert worst.values[0] == pytest.approx(max(world.everything.values()))
    assert worst_concept(worst) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            aggregated("{mean: finetune.dataset}").replace(
                "maximize: resurgence", "maximize: worst_resurgence"
            ),
            "a mean of worst concepts is of no one concept",
        ),
        (
            defending("{max: unlearn.method}").replace("unlearn: salun", "unlearn: [salun, uce]"),
            "a defence is one unlearner",
        ),
    ],
)
def test_what_has_no_answer_is_refused(text: str, why: str) -> None:
    with pytest.raises(SweepError, match=why):
        parse(text)
