"""Which settings the table of results shows."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.show.settings import render
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.settings import Aggregate, aggregate, caption
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from tests.orchestrator.synthetic import commit

CHAIN = """
name: chain
base: shapes
concept: star
edits:
  - unlearn: esd
  - finetune: {dataset: related, learning_rate: 1.0e-3, steps: [0, 50]}
  - finetune: {dataset: unrelated, learning_rate: 1.0e-3, steps: 100}
evaluate: {metrics: [concept_accuracy]}
seeds: 2
include: [{finetune_2.steps: 0}]
"""


@pytest.fixture
def plan() -> Plan:
    return make_plan(parse(CHAIN))


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    store = Store(tmp_path)
    commit(store, plan)
    return store


def steps_of(setting: Aggregate) -> tuple[object, object]:
    return setting.params["finetune.steps"], setting.params["finetune_2.steps"]


def test_a_chain_whose_last_fine_tune_has_no_steps_is_shown(plan: Plan, store: Store) -> None:
    """Its first fine-tune brings something back; only without any is there nothing to show."""
    settings = [s for s in aggregate(plan, store).settings if not s.is_control]
    assert {steps_of(s): s.is_tuned for s in settings} == {
        (0, 100): True,
        (50, 100): True,
        (50, 0): True,
        (0, 0): False,
    }
    shown = aggregate(plan, store).shown
    assert {steps_of(s) for s in shown} == {(0, 100), (50, 100), (50, 0)}
    [first_only] = [s for s in shown if steps_of(s) == (50, 0)]
    assert first_only.is_ranked
    assert first_only.resurgence is not None and first_only.resurgence > 0.1


def test_there_may_be_no_trial_yet(plan: Plan, store: Store) -> None:
    """So it is of a search that was not begun."""
    nothing = aggregate(replace(plan, trials=(), stages=()), store)
    assert nothing.settings == ()
    assert nothing.caption == "no trials yet"


def test_the_table_has_a_row_for_it(plan: Plan, store: Store) -> None:
    page = io.StringIO()
    render(aggregate(plan, store), Console(file=page, width=200))
    rows = [line.split()[:2] for line in page.getvalue().splitlines()]
    assert ["50", "0"] in rows
    assert ["0", "0"] not in rows


def test_the_caption_counts_the_prompts_of_every_set() -> None:
    sets = "concept: [star, [star, circle]]"
    one, several = (
        make_plan(parse(text)) for text in (CHAIN, CHAIN.replace("concept: star", sets))
    )
    count = sum(
        probe["role"] == "erased" for probe in one.trials[0].final.sample.settings["probes"]
    )
    assert f" {count} prompts × " in caption(one)
    assert f" {count} to {2 * count} prompts × " in caption(several)
