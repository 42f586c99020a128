"""Forecast: hours and makespan of a sweep, from what stages of its base took before."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.forecast import amount_of, forecast, longest_path_s, simulated_s
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

PASS_S, EACH_S = 0.01, 2.0
"""Seconds of a UNet pass, and of a stage that has none."""


def sweep(methods: str = "[esd, uce]", steps: str = "[0, 50, 100]", seeds: int = 2) -> Plan:
    return make_plan(
        parse(
            f"""
name: asked
base: shapes
concept: star
edits:
  - unlearn: {methods}
  - finetune: {{dataset: related, learning_rate: [1.0e-4, 1.0e-3], steps: {steps}}}
evaluate: {{metrics: [concept_accuracy], images_per_prompt: 2}}
seeds: {seeds}
"""
        )
    )


def commit(store: Store, plan: Plan, device: str = "cpu", times: float = 1.0) -> float:
    """Record the plan's stages as run task by task, at PASS_S a pass; the sum of the seconds."""
    total, empty = 0.0, store.keys()
    for task in make_tasks(plan, empty, ()):
        trained = 0
        for stage in task.stages:
            before = trained if stage.kind == "finetune" else 0
            amount = amount_of(stage.kind, stage.plugin, stage.settings, before)
            seconds = times * (amount * PASS_S if amount else EACH_S)
            store.commit(stage, {}, {}, "2026-01-01T00:00:00+00:00", seconds, {"device": device})
            trained, total = stage.steps or trained, total + seconds
    return total


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_ran_is_forecast_as_it_was(store: Store) -> None:
    plan = sweep()
    total = commit(store, plan)
    found = forecast(plan, store, (), workers=1)
    assert found.shared.worker_s == pytest.approx(total)
    assert found.shared.makespan_s == pytest.approx(total), "one worker is never idle"
    assert found.left.worker_s == found.left.makespan_s == 0
    assert found.guessed == ()


def test_another_sweep_of_the_base_is_forecast_from_it(store: Store, tmp_path: Path) -> None:
    commit(store, sweep())
    other = sweep(steps="[0, 25, 200, 400]", seeds=3)
    truth = commit(Store(tmp_path / "other"), other)
    found = forecast(other, store, (), workers=4)
    assert found.shared.worker_s == pytest.approx(truth)
    assert 0 < found.left.worker_s < found.shared.worker_s, "seeds 0 and 1 have their unlearnings"
    assert found.path_s <= found.shared.makespan_s
    assert found.shared.makespan_s >= truth / 4


def test_sharing_takes_less_than_a_careful_script_and_that_less_than_a_loop(store: Store) -> None:
    plan = sweep()
    commit(store, plan)
    found = forecast(plan, store, (), workers=2)
    assert found.shared.worker_s < found.by_hand.worker_s < found.naive.worker_s
    assert found.shared.makespan_s < found.by_hand.makespan_s < found.naive.makespan_s
    alone = sum(
        amount_of(s.kind, s.plugin, s.settings) * PASS_S or EACH_S
        for trial in plan.trials
        for s in trial.stages()
    )
    assert found.naive.worker_s == pytest.approx(alone)


@pytest.mark.parametrize("methods", ["[esd, uce]", "[salun, mace]"])
def test_with_a_worker_for_every_task_the_longest_chain_is_left(methods: str) -> None:
    plan = sweep(methods)
    tasks = make_tasks(plan, (), ())
    seconds = {stage.key: 1.0 + int(stage.digest[:2], 16) for stage in plan.stages}
    path_s = longest_path_s(tasks, seconds)
    assert simulated_s(tasks, (), len(tasks), seconds) == pytest.approx(path_s)
    assert simulated_s(tasks, (), 1, seconds) == pytest.approx(sum(seconds.values())) != path_s


def test_a_method_that_never_ran_is_guessed_by_its_passes(store: Store) -> None:
    commit(store, sweep(methods="[uce]"))
    plan = sweep(methods="[uce, esd]")
    found = forecast(plan, store, (), workers=1)
    assert found.guessed == ("unlearn esd",)
    [esd] = {s for s in plan.stages if s.kind == "unlearn" and s.plugin == "esd" and s.seed == 0}
    known = forecast(sweep(methods="[uce]"), store, (), workers=1)
    more = found.shared.worker_s - known.shared.worker_s
    assert more > 2 * amount_of("unlearn", "esd", esd.settings) * PASS_S


def test_two_kinds_of_devices_are_told_apart(store: Store, tmp_path: Path) -> None:
    commit(store, sweep(seeds=1), "NVIDIA H100 80GB HBM3", times=0.1)
    commit(store, sweep(), "cpu")
    with pytest.raises(ResurgeError, match=r"NVIDIA H100 80GB HBM3, cpu: choose one with --gpu"):
        forecast(sweep(), store, (), workers=1)
    slow = forecast(sweep(), store, (), workers=1, device="cpu")
    fast = forecast(sweep(), store, (), workers=1, device="h100")
    assert fast.device == "NVIDIA H100 80GB HBM3"
    assert fast.shared.worker_s < 0.2 * slow.shared.worker_s
    with pytest.raises(ResurgeError, match="no stage of this base has run on A100 yet"):
        forecast(sweep(), store, (), workers=1, device="A100")
