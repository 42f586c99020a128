"""A study in words: what is sought and how, and what was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from orchestrator.search_plan import Points
from orchestrator.search_settings import Search
from orchestrator.search_table import counted_seeds, goals_text, point_text
from orchestrator.tried import State, in_order
from orchestrator.worst_case import WorstCase

_STATE_WORDS: Mapping[State, str] = {
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
        "subject_to": _bounds_text(search) or "nothing",
        "sampler": settings.sampler,
        "pruner": settings.pruner,
        "trials": str(settings.trials),
        "seeds": ", ".join(str(seed) for seed in points.sweep.seeds),
        "confirm": confirm_text(search),
    }


def confirm_text(search: Search) -> str:
    """'top 3 on 5 seeds'."""
    confirm = search.confirm
    return f"top {confirm.top} on {counted_seeds(confirm.seeds)}" if confirm.top else "nothing"


def sentences(case: WorstCase, search: Search) -> Iterator[str]:
    """What was found, what was tried, and what was asked."""
    yield _found(case)
    counts = [f"{case.count(state)} {word}" for state, word in _STATE_WORDS.items()]
    yield f"{len(in_order(case.trials))} of {case.budget} trials: {', '.join(counts)}."
    bounds = f", subject to {_bounds_text(search)}" if search.subject_to else ""
    goals = goals_text(case.goals)
    yield (
        f"{goals[0].upper()}{goals[1:]}{bounds}. Sampler {search.settings.sampler}, pruner "
        f"{search.settings.pruner}."
    )


def _found(case: WorstCase) -> str:
    worst = case.worst
    if worst is None or worst.goal is None:
        return "No worst case is confirmed."
    mean, seeds = worst.goal, worst.setting.planned
    sure = f", 95% interval {mean.low:.2f} to {mean.high:.2f}"
    return (
        f"Worst case: {point_text(worst.tried.point, case.space)}. On {seeds} fresh "
        f"seed{'' if seeds == 1 else 's'} {case.goals[0].name} is {mean.value:.2f}"
        f"{sure if math.isfinite(mean.high - mean.low) else ''}; the search's own figure, "
        f"{worst.searched:.2f}, is too large on average."
    )


def _bounds_text(search: Search) -> str:
    return ", ".join(f"{bound.name} {bound}" for bound in search.subject_to)
