"""Whole searches of a surface whose maximum is known: it is found, and it is found where it is."""

from __future__ import annotations

import gc
import io
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.core.registry import find
from orchestrator.home import Home
from orchestrator.search import search
from orchestrator.study.tried import Tried, best, counted
from orchestrator.study.worst_case import WorstCase
from orchestrator.sweepfile.load import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("calls"),
    pytest.mark.filterwarnings("ignore:.* experimental"),
]

LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-1
BY_CHANCE = 10
"""Trials that a sampler draws before it has learned anything."""
NEAR = 0.05
"""Within so much of the surface's range the maximum counts as found."""

TOP, MOVED = (1e-2, 80), (3e-4, 160)

SEARCH = f"""
name: known
base: tiny
concept: star
edits:
  - unlearn: blank
  - finetune: {{dataset: dots, steps: 1, batch_size: 1}}
evaluate:
  metrics: [{{peak: {{rate: RATE, level: LEVEL}}}}]
  sampler_steps: 1
  prompts: ["a {{concept}}"]
  images_per_prompt: 1
  retain: []
  controls: false
search:
  maximize: peak.height
  space:
    finetune.learning_rate: {{log: [{LOWEST_RATE}, {HIGHEST_RATE}]}}
    finetune.dots.level: {{int: [0, 255]}}
  checkpoints: 0
  confirm: {{top: 0}}
resources: {{executor: inline}}
"""


@pytest.fixture(autouse=True)
def frozen() -> None:
    """After each training a worker collects garbage. Here it would look through all modules of
    the tests and of the search each time, which takes longer than the training.
    """
    import workers.runner
    import workers.shapes.making.architecture  # noqa: F401

    gc.collect()
    gc.freeze()


def found_by(sampler: str, trials: int, top: tuple[float, int], folder: Path) -> WorstCase:
    """What a whole search comes to."""
    text = SEARCH.replace("RATE", f"{top[0]}", 1).replace("LEVEL", f"{top[1]}", 1)
    sweep = parse(text, None, [f"search.sampler={sampler}", f"search.trials={trials}"])
    [case] = search.run_search(sweep, Home(folder), Console(file=io.StringIO()))
    return case


def height(trial: Tried, top: tuple[float, int]) -> float:
    """Where a trial's settings lie between the surface's lowest point, 0, and its top, 1."""
    peak = find("metric", "peak")
    surface = peak(peak.Settings(rate=top[0], level=top[1]))
    corners = product((LOWEST_RATE, HIGHEST_RATE), (0, 255))
    lowest = min(surface.height(rate, level) for rate, level in corners)  # it is concave
    point = trial.point
    reached = surface.height(point["finetune.learning_rate"], point["finetune.dots.level"])
    return (reached - lowest) / (surface.height(*top) - lowest)


@pytest.mark.parametrize(("sampler", "trials", "top"), [("tpe", 60, TOP), ("gp", 30, MOVED)])
def test_a_known_maximum_is_found(
    sampler: str, trials: int, top: tuple[float, int], tmp_path: Path
) -> None:
    case = found_by(sampler, trials, top, tmp_path)
    assert len(counted(case.trials)) == trials
    [found] = best(case.trials, case.goals, 1)
    assert found.numbers["peak.rate"] == pytest.approx(found.point["finetune.learning_rate"], 0.01)
    assert found.numbers["peak.level"] == found.point["finetune.dots.level"]
    assert height(found, top) >= 1 - NEAR
    # It was not found by chance, and it moves with the surface.
    [early] = best(counted(case.trials)[:BY_CHANCE], case.goals, 1)
    assert height(early, top) < 1 - NEAR
    [other] = {TOP, MOVED} - {top}
    assert height(found, other) < 1 - NEAR
