"""A study in words: what is sought and how, and what was found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.core.text import axis_value, number
from orchestrator.study.points import Points
from orchestrator.study.tried import TriedState, in_order
from orchestrator.study.worst_case import Confirmed, WorstCase
from orchestrator.sweep.search import Aggregate, Bound, Goal, Search
from orchestrator.sweep.space import Categorical, Dimension, Point, Space


def counted_seeds(count: int) -> str:
    """'1 seed', '3 seeds'."""
    return f"{count} seed{'' if count == 1 else 's'}"


def goals_text(goals: Sequence[Goal]) -> str:
    """'maximise resurgence and minimise finetune.steps'."""
    return " and ".join(f"{'max' if g.maximize else 'min'}imise {g.name}" for g in goals)


def values_text(dimension: Dimension) -> str:
    """'related, unrelated', '1e-5 to 3e-3, logarithmic'."""
    if isinstance(dimension, Categorical):
        return ", ".join(number(label) for label in dimension.labels)
    laid = ", logarithmic" if dimension.log else ""
    step = f", in steps of {number(dimension.step)}" if dimension.step else ""
    return f"{number(dimension.low)} to {number(dimension.high)}{laid}{step}"


def when_text(dimension: Dimension) -> str:
    return " and ".join(
        f"{name} is {' or '.join(map(number, values))}" for name, values in dimension.when
    )


def point_text(point: Point, space: Space) -> str:
    """'related lora lr=1e-3 steps=400': the searched settings of a point."""
    names = [d.name for d in space.dimensions if d.name in point]
    return " ".join(axis_value(name, point[name], "=") for name in names)


def setting_text(one: Confirmed, space: Space) -> str:
    """The same of a confirmed setting, with the aggregated value, or the concept of a set, that is
    the worst of it.
    """
    where = point_text(one.tried.point, space)
    of = ", ".join(name for name in (one.member, one.concept) if name)
    return f"{where} ({of})" if of else where


def budget_text(search: Search) -> str:
    """'40 trials, at most 20,000 steps, at most 2 GPU hours'."""
    settings = search.settings
    parts = [f"{settings.trials} trials"]
    if settings.steps is not None:
        parts.append(f"at most {settings.steps:,} steps")
    if settings.gpu_hours is not None:
        parts.append(f"at most {settings.gpu_hours:g} GPU hours")
    return ", ".join(parts)


_STATE_WORDS: Mapping[TriedState, str] = {
    "done": "run to the end",
    "pruned": "pruned",
    "failed": "failed",
}


def asked(points: Points) -> dict[str, str]:
    """What is sought, and how, by name."""
    search, settings = points.search, points.search.settings
    goals = {
        word: ", ".join(goal.name for goal in search.goals if goal.maximize == is_up)
        for word, is_up in (("maximize", True), ("minimize", False))
    }
    return {
        **{word: names for word, names in goals.items() if names},
        "subject_to": "; or ".join(map(_bounds_text, search.bounds)) or "nothing",
        "sampler": settings.sampler,
        "pruner": settings.pruner,
        **({"aggregate": aggregate_text(search.aggregate)} if search.aggregate else {}),
        "trials": str(settings.trials),
        "seeds": ", ".join(str(seed) for seed in points.seeds),
        "confirm": confirm_text(search),
    }


def aggregate_text(aggregate: Aggregate) -> str:
    """'max over concept, unlearn.method'."""
    return f"{aggregate.how} over {', '.join(aggregate.axes)}"


def confirm_text(search: Search) -> str:
    """'top 3 on 5 seeds'."""
    confirm = search.confirm
    return f"top {confirm.top} on {counted_seeds(confirm.seeds)}" if confirm.top else "nothing"


def sentences(case: WorstCase, search: Search) -> Iterator[str]:
    """What was found, what was tried, and what was asked."""
    worst = case.worst
    if worst is None or worst.goal is None:
        yield "No worst case is confirmed."
    else:
        mean = worst.goal
        sure = f", 95% interval {mean.low:.2f} to {mean.high:.2f}"
        yield (
            f"Worst case: {setting_text(worst, case.space)}. On "
            f"{worst.setting.planned} fresh seed{'' if worst.setting.planned == 1 else 's'} "
            f"{case.goals[0].name} is {mean.value:.2f}"
            f"{sure if math.isfinite(mean.high - mean.low) else ''}; the search's own figure, "
            f"{worst.searched:.2f}, is too large on average."
        )
        if flags := ", ".join(worst.setting.flags()):
            yield f"Of it: {flags}."
    counts = [f"{case.count(state)} {word}" for state, word in _STATE_WORDS.items()]
    spent = "; the budget in steps or hours is spent" if case.is_spent else ""
    yield f"{len(in_order(case.trials))} of {case.budget} trials: {', '.join(counts)}{spent}."
    bounds = f", subject to {_bounds_text(case.bounds)}" if case.bounds else ""
    goals = goals_text(case.goals)
    yield (
        f"{goals[0].upper()}{goals[1:]}{bounds}. Sampler {search.settings.sampler}, pruner "
        f"{search.settings.pruner}."
    )


def _bounds_text(bounds: Iterable[Bound]) -> str:
    return ", ".join(f"{bound.name} {bound}" for bound in bounds)
