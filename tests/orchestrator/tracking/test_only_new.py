"""While a sweep runs, MLflow is told of what changed: in the end it is what all would have told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.core.artifacts import Failure
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, PlannedTrial, make_plan
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.sweep_runs import SweepView
from tests.orchestrator import synthetic

TEXT = """
name: new
base: shapes
concept: star
edits:
  - unlearn: [uce, esd]
  - finetune: {dataset: related, learning_rate: [1.0e-3, 3.0e-4], steps: [0, 50, 100]}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 4}
seeds: 1
"""


@pytest.fixture
def plan() -> Plan:
    return make_plan(parse(TEXT))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def digests(view: SweepView, only_new: bool = False) -> Mapping[str, str]:
    return {run.key: run.digest for run in view.runs(only_new)}


def in_turn(plan: Plan) -> list[list[Stage]]:
    """Stages as they are recorded, a few at a time."""
    return [list(plan.stages[start : start + 4]) for start in range(0, len(plan.stages), 4)]


def test_what_is_new_adds_up_to_everything(plan: Plan, store: Store) -> None:
    view, shown = SweepView(plan, store, None), {}
    for stages in in_turn(plan):
        synthetic.commit(store, plan, {stage.digest for stage in stages})
        shown |= digests(view, only_new=True)
        assert shown == digests(SweepView(plan, store, None))
    assert digests(view) == shown
    assert len(shown) > len(plan.trials)


def test_a_stage_costs_the_trials_that_hang_on_it(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = plan.trials[-1]
    [score] = last.final.scores
    synthetic.commit(store, plan, {stage.digest for stage in plan.stages if stage != score})
    view = SweepView(plan, store, None)
    digests(view)
    measured: list[str] = []
    measure_all = TrialReader.measure_all

    def spy(reader: TrialReader, trials: Sequence[PlannedTrial]) -> list[Measured]:
        measured.extend(planned.key for planned in trials)
        return measure_all(reader, trials)

    monkeypatch.setattr(TrialReader, "measure_all", spy)
    assert digests(view, only_new=True).keys() == {"sweep"} and not measured
    synthetic.commit(store, plan, {score.digest})
    digests(view, only_new=True)
    compared = {t.key for t in plan.trials if t.control == last.final.model.digest}
    assert last.is_control and compared
    assert set(measured) == {last.key} | compared


def test_what_was_not_taken_is_shown_again(plan: Plan, store: Store) -> None:
    view, first = SweepView(plan, store, None), plan.stages[:8]
    synthetic.commit(store, plan, {stage.digest for stage in first})
    runs = iter(view.runs(only_new=True))
    assert next(runs).key == "sweep"
    runs.close()  # MLflow was away
    assert digests(view, only_new=True) == digests(SweepView(plan, store, None))


def test_a_failure_and_what_is_gone_are_new(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan, {stage.digest for stage in plan.stages[:-1]})
    view, shown = SweepView(plan, store, None), {}
    shown |= digests(view, only_new=True)
    store.put_failure(plan.stages[-1], Failure("told to fail", "", "bug"))
    shown |= digests(view, only_new=True)
    assert shown == digests(SweepView(plan, store, None))
    gone = next(stage for stage in plan.stages if stage.kind == "score")
    store.files.delete(f"records/{gone.key}.json")
    shown |= digests(view, only_new=True)
    now = digests(SweepView(plan, store, None))
    assert {key: shown[key] for key in now} == now
    synthetic.commit(store, plan)  # made again: no record counts twice
    assert shown | digests(view, only_new=True) == digests(SweepView(plan, store, None))
