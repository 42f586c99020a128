"""Scheduler: order, warm workers, failures, lost workers, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.simulated import Simulated
from orchestrator.plan import Plan, make_plan
from orchestrator.scheduler import MAX_LOSSES, Outcome, Scheduler
from orchestrator.stage import Stage
from orchestrator.store import Store
from orchestrator.sweep import parse
from orchestrator.tasks import make_tasks

pytestmark = pytest.mark.usefixtures("calls")


def seconds(stage: Stage) -> float:
    return float(stage.steps) if stage.kind == "finetune" else 1.0


def simulate(
    plan: Plan, tmp_path: Path, workers: int = 2, dies: Callable[[Stage], bool] = lambda s: False
) -> tuple[Outcome, Simulated]:
    executor = Simulated(ExecutorSettings(workers=workers), seconds, dies)
    with executor:
        tasks = make_tasks(plan, (), ())
        store = Store(tmp_path / "store")
        outcome = Scheduler(tasks, (), executor, store, tmp_path / "logs").run()
    return outcome, executor


def test_everything_runs_once(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    outcome, _ = simulate(plan, tmp_path)
    assert outcome.ok
    assert outcome.ran == {stage.key for stage in plan.stages}


def test_no_task_starts_before_its_parent_is_recorded(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    tasks = {task.id: task for task in make_tasks(plan, (), ())}
    _, executor = simulate(plan, tmp_path, workers=4)
    started = {task_id: at for at, _, task_id in executor.history}
    for task_id, at in started.items():
        after = tasks[task_id].after
        if after is not None:
            parent = next(t for t in tasks.values() if after in t.stages)
            assert at >= started[parent.id] + 1.0  # the unlearning itself takes a second


def test_children_start_before_the_parents_task_ends(small: str, tmp_path: Path) -> None:
    """The unlearned model's images need not be scored before its fine-tunes begin."""
    plan = make_plan(parse(small, None, ["unlearn=nudge", "evaluate.controls=false"]))
    _, executor = simulate(plan, tmp_path, workers=4)
    (unlearning,) = [t for t in make_tasks(plan, (), ()) if t.stages[0].kind == "unlearn"]
    started = {task_id: at for at, _, task_id in executor.history}
    children = [t for t in make_tasks(plan, (), ()) if t.after == unlearning.stages[0]]
    assert min(started[t.id] for t in children) == started[unlearning.id] + 1.0


def test_a_worker_goes_on_with_the_model_that_it_holds(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small, None, ["unlearn=nudge", "seeds=1", "concept=[star, heart]"]))
    tasks = {task.id: task for task in make_tasks(plan, (), ())}
    _, executor = simulate(plan, tmp_path)
    last: dict[str, str] = {}
    went_on = []
    for _, worker, task_id in executor.history:
        after = tasks[task_id].after
        if after is not None and worker in last:
            went_on.append(tasks[last[worker]].stages[0] == after)
        last[worker] = task_id
    assert any(went_on)


def test_longest_first_beats_file_order(small: str, tmp_path: Path) -> None:
    """One long trajectory among short ones: begun last it would end alone."""
    overrides = (
        *("unlearn=nudge", "finetune.steps=1", "evaluate.controls=false", "seeds=1"),
        "finetune.learning_rate=[1e-5,2e-5,3e-5,4e-5,5e-5,6e-5]",
        "include=[{finetune.learning_rate: 1e-2, finetune.steps: 10}]",
    )
    sweep = parse(small, None, overrides)
    _, executor = simulate(make_plan(sweep), tmp_path)
    work_s = 1 + 2 + 3 + 6 * 3 + 12  # data, base, unlearning, the short ones, the long one
    assert executor.now_s <= work_s / 2 + 1


def test_a_lost_worker_costs_its_task_a_retry(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    died: list[Stage] = []

    def once(stage: Stage) -> bool:
        if stage.steps == 2 and not died:
            died.append(stage)
            return True
        return False

    outcome, executor = simulate(plan, tmp_path, dies=once)
    assert outcome.ok
    assert len(executor.history) == len(make_tasks(plan, (), ())) + 1


def test_a_task_that_takes_worker_after_worker_is_given_up(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    poison = next(stage for stage in plan.stages if stage.steps == 1)
    outcome, executor = simulate(plan, tmp_path, dies=lambda stage: stage == poison)
    assert set(outcome.failed) == {poison.key}
    assert f"lost {MAX_LOSSES} workers" in outcome.failed[poison.key].message
    tries = [task_id for _, _, task_id in executor.history]
    assert max(map(tries.count, tries)) == MAX_LOSSES
    store = Store(tmp_path / "store")
    assert set(store.failures()) == {poison.key}


def test_descendants_of_a_lost_model_are_skipped_and_siblings_go_on(
    small: str, tmp_path: Path
) -> None:
    plan = make_plan(parse(small))
    poison = next(stage for stage in plan.stages if stage.plugin == "nudge")
    outcome, _ = simulate(plan, tmp_path, dies=lambda stage: stage == poison)
    below = {s.key for s in plan.stages if poison in s.ancestry() and s != poison}
    assert outcome.skipped == below
    assert outcome.ran == {s.key for s in plan.stages} - below - {poison.key}
    assert not outcome.ok
