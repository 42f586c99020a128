"""Whole searches of a surface whose maximum is known: it is found, and it is found where it is."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import search
from orchestrator.home import Home
from orchestrator.plugin import find
from orchestrator.sweep import parse
from orchestrator.tried import best, counted
from orchestrator.worst_case import WorstCase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("calls"),
    pytest.mark.filterwarnings("ignore:.* experimental"),
]

LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-1
TRIALS = 60
NEAR = 0.05
"""Within so much of the surface's range the maximum counts as found."""

TOP, MOVED = (1e-2, 80), (3e-4, 160)

SEARCH = f"""
name: known
base: tiny
concept: star
edits:
  - unlearn: dim
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
  trials: {TRIALS}
  confirm: {{top: 0}}
resources: {{executor: inline}}
"""


def found_by(sampler: str, top: tuple[float, int], folder: Path) -> WorstCase:
    """What a whole search comes to."""
    text = SEARCH.replace("RATE", f"{top[0]}", 1).replace("LEVEL", f"{top[1]}", 1)
    sweep = parse(text, None, [f"search.sampler={sampler}"])
    [case] = search.run(sweep, Home(folder), Console(file=io.StringIO()))
    return case


def shortfall(case: WorstCase, top: tuple[float, int]) -> float:
    """How far below the maximum the best trial's settings lie, as a share of the range."""
    peak = find("metric", "peak")(find("metric", "peak").Settings(rate=top[0], level=top[1]))
    corners = product((LOWEST_RATE, HIGHEST_RATE), (0, 255))
    lowest = min(peak.height(rate, level) for rate, level in corners)  # the surface is concave
    [one] = best(case.trials, case.goals, 1)
    point = one.point
    reached = peak.height(point["finetune.learning_rate"], point["finetune.dots.level"])
    return (peak.height(*top) - reached) / (peak.height(*top) - lowest)


@pytest.mark.parametrize("top", [TOP, MOVED])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_known_maximum_is_found(sampler: str, top: tuple[float, int], tmp_path: Path) -> None:
    case = found_by(sampler, top, tmp_path)
    assert len(counted(case.trials)) == TRIALS
    assert shortfall(case, top) <= NEAR
    # Where the other surface has its maximum this one has none.
    [other] = {TOP, MOVED} - {top}
    assert shortfall(case, other) > NEAR
