"""The pictures and the page of a study, of many trials and of hardly any."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from orchestrator.stats.paired import Estimate
from orchestrator.study import optuna_views
from orchestrator.study.tried import Tried, TriedState
from orchestrator.study.worst_case import Confirmed, WorstCase
from orchestrator.sweep.search import Goal
from orchestrator.sweep.space import Categorical, Range, Space
from orchestrator.tracking.search_figures import drawings
from orchestrator.tracking.search_page import page

pytestmark = [
    pytest.mark.filterwarnings("error:No artists with labels"),
    pytest.mark.filterwarnings("ignore:.* experimental"),
]

DATASET = Categorical("finetune.dataset", ("related", "unrelated"))
ADAPTER = Categorical("finetune.adapter", ("full", "lora"))
RANK = Categorical("finetune.lora_rank", (4, 16), when=(("finetune.adapter", ("lora",)),))
RATE = Range("finetune.learning_rate", 1e-4, 1e-2, log=True)
STEPS = Range("finetune.steps", 25, 200, is_int=True, step=25)
SPACE = Space((DATASET, ADAPTER, RANK, RATE, STEPS))
ONE = (Goal("resurgence"),)
TWO = (Goal("resurgence"), Goal("finetune.steps", maximize=False))


def tried(
    number: int, state: TriedState = "done", goals: Sequence[Goal] = ONE, **point: Any
) -> Tried:
    lora = {"finetune.lora_rank": 16} if number % 2 else {}
    settings = {
        "finetune.dataset": ("related", "unrelated")[number % 3 == 1],
        "finetune.adapter": "lora" if lora else "full",
        **lora,
        "finetune.learning_rate": float(f"{1e-4 * 1.4 ** (number % 13):.2g}"),
        "finetune.steps": 25 * (1 + number % 8),
    }
    values = (number * 0.37 % 1, float(settings["finetune.steps"]))[: len(goals)]
    return Tried(
        number=number,
        state=state,
        point=settings | point,
        values=values if state == "done" else (),
        numbers={},
        is_feasible=number % 5 != 4,
        reason=None,
        repeat_of=None,
        curve={25: 0.1} if state in ("pruned", "failed") else {},
        started_ms=1_000 * number,
        ended_ms=1_000 * number + 500,
    )


def case_of(trials: Sequence[Tried], goals: Sequence[Goal] = ONE) -> WorstCase:
    return WorstCase("hunt/esd", {}, SPACE, tuple(goals), 12, tuple(trials), ())


def drawn(case: WorstCase) -> set[str]:
    """The pictures that there are, each of which can be drawn and opened."""
    study = optuna_views.in_memory(case.trials, case.space, case.goals)
    found = drawings(case, optuna_views.importance(study))
    for draw in found.values():
        with Image.open(io.BytesIO(draw())) as image:
            assert image.width > 500
    return set(found)


USUAL = {"history.png", "importance.png", "slice.png", "contour.png"}


def test_all_is_drawn_of_many_trials() -> None:
    trials = [tried(n, "pruned" if n == 3 else "done") for n in range(12)]
    assert drawn(case_of([*trials, tried(12, "failed"), tried(13, "running")])) == USUAL


def test_several_goals_have_their_front() -> None:
    case = case_of([tried(n, goals=TWO) for n in range(12)], TWO)
    assert drawn(case) == USUAL | {"pareto_front.png"}


@pytest.mark.parametrize("state", ["failed", "running"])
def test_nothing_is_drawn_of_trials_without_a_value(state: TriedState) -> None:
    assert drawn(case_of([])) == set()
    assert drawn(case_of([tried(0, state), tried(1, state)])) == set()


def test_hardly_anything_is_drawn_of_one_trial() -> None:
    assert drawn(case_of([tried(0)])) == {"history.png"}
    assert drawn(case_of([tried(0, "pruned")])) == {"history.png"}


def test_settings_that_never_vary_are_left_out() -> None:
    same = {"finetune.dataset": "related", "finetune.adapter": "full", "finetune.steps": 50}
    trials = [tried(n, **same) for n in (0, 2, 4)]
    assert "contour.png" not in drawn(case_of(trials))
    trials = [tried(n, **same, **{"finetune.learning_rate": 1e-3}) for n in (0, 2, 4)]
    assert "slice.png" not in drawn(case_of(trials))


def test_values_that_are_all_the_same_are_drawn() -> None:
    assert drawn(case_of([tried(0), tried(200), tried(300)])) >= {"slice.png", "contour.png"}


def test_an_interval_without_ends_is_drawn_as_a_point() -> None:
    setting: Any = None
    goal = Estimate(0.4, -math.inf, math.inf)
    worst = Confirmed(tried(1), 0.37, goal, setting, {"resurgence": 0.4}, is_feasible=True)
    case = WorstCase("hunt", {}, SPACE, ONE, 12, tuple(tried(n) for n in range(6)), (worst,))
    assert drawn(case) == USUAL


def test_repeats_count_for_nothing_and_numbers_stay() -> None:
    first = tried(0)
    again = Tried(**{**vars(first), "number": 1, "repeat_of": 0})
    study = optuna_views.in_memory([first, again, tried(2)], SPACE, ONE)
    done = [trial for trial in study.trials if trial.value is not None]
    assert [trial.number for trial in done] == [0, 2]
    assert done[0].params == {**first.point}


def test_a_bound_that_is_broken_is_no_best_value() -> None:
    study = optuna_views.in_memory([tried(4), tried(0)][::-1], SPACE, ONE)
    assert study.best_trial.number == 0


def test_the_page_has_a_heading_a_plot_and_our_words() -> None:
    case = case_of([tried(n) for n in range(12)])
    figures = optuna_views.plots(
        optuna_views.in_memory(case.trials, case.space, case.goals), case.goals
    )
    text = page("hunt <esd>", ["resurgence < 1"], figures)
    assert "<h1>hunt &lt;esd&gt;</h1>" in text and "<p>resurgence &lt; 1</p>" in text
    assert [text.count(f'id="{name}"') for name in figures] == [1] * 4
    body = text[text.index("<h2>") :]
    assert "Hyperparameter" not in body and "Best Value" not in body
    assert "&#x27;related" not in body and "'related'" not in body


def test_the_page_of_nothing_is_its_words() -> None:
    assert "<h2>" not in page("hunt", [], {})
