"""Scheduler: order, warm workers, failures, lost workers, on a virtual clock."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.core.stage import Stage
from orchestrator.executors.base import ExecutorSettings, WorkerKind, Workers
from orchestrator.executors.simulated import Simulated
from orchestrator.messages import Event, TaskWaits, WorkOrder
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.progress import Progress
from orchestrator.schedule.failures import MAX_HANGS, MAX_LOSSES, MAX_STORAGE, SPLITS
from orchestrator.schedule.scheduler import Outcome, Rules, Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.usefixtures("calls")


def seconds(stage: Stage) -> float:
    return float(stage.steps) if stage.kind == "finetune" else 1.0


def simulate(
    plan: Plan,
    tmp_path: Path,
    workers: int = 2,
    rules: Rules | None = None,
    executor_class: type[Simulated] = Simulated,
    **trouble: Any,
) -> tuple[Outcome, Simulated]:
    executor = executor_class(ExecutorSettings(workers=workers), seconds, **trouble)
    with executor:
        tasks = make_tasks(plan, (), ())
        store, logs = Store(tmp_path / "store"), tmp_path / "logs"

        def clock_s() -> float:
            return executor.now_s

        scheduler = Scheduler(tasks, (), executor, store, logs, rules=rules, clock_s=clock_s)
        outcome = scheduler.run()
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


def finetune_of(plan: Plan, steps: int) -> Stage:
    return next(s for s in plan.stages if s.kind == "finetune" and s.steps == steps)


def test_a_lost_machine_costs_a_task_nothing(small: str, tmp_path: Path) -> None:
    """More often than workers may die for the task's own fault."""
    plan = make_plan(parse(small))
    unlucky, times = finetune_of(plan, 2), iter(range(MAX_LOSSES + 3))

    def dies(stage: Stage) -> bool | str:
        return "node" if stage == unlucky and next(times, None) is not None else False

    outcome, _ = simulate(plan, tmp_path, dies=dies)
    assert outcome.ok


class ForWholeGpusOnly(WorkerKind):
    """What a worker has that is kept for the tasks that need a GPU of their own."""

    def fits(self, task: WorkerKind) -> bool:
        return task.whole_gpu


class OneWholeGpu(Simulated):
    """Workers with a share of a GPU each, but for worker-1."""

    def workers(self) -> Workers:
        free = [
            replace(worker, has=ForWholeGpusOnly() if worker.name == "worker-1" else WorkerKind())
            for worker in super().workers().free
        ]
        return Workers(free, len(self.holds), shares_gpu=True)


def test_memory_is_answered_with_a_whole_gpu_and_then_smaller_parts(
    small: str, tmp_path: Path
) -> None:
    plan = make_plan(parse(small))
    large = finetune_of(plan, 1)

    def fails(order: WorkOrder, stage: Stage) -> str | None:
        return "oom" if stage == large and order.split < SPLITS[-1] else None

    outcome, executor = simulate(plan, tmp_path, executor_class=OneWholeGpu, fails=fails)
    assert outcome.ok
    given = [
        (large in order.task.stages, worker == "worker-1", order.split)
        for order, (_, worker, _) in zip(executor.orders, executor.history, strict=True)
    ]
    tries = [(is_whole, split) for is_large, is_whole, split in given if is_large]
    assert tries == [(False, 1), (True, 1), (True, SPLITS[0]), (True, SPLITS[1])]
    others = {(is_whole, split) for is_large, is_whole, split in given if not is_large}
    assert others == {(False, 1)}


def test_what_fits_nowhere_fails_with_what_was_tried(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    large = finetune_of(plan, 1)
    outcome, executor = simulate(
        plan, tmp_path, fails=lambda order, stage: "oom" if stage == large else None
    )
    assert set(outcome.failed) == {large.key}
    assert outcome.failed[large.key].cause == "oom"
    assert f"{SPLITS[-1]} parts a batch" in outcome.failed[large.key].message
    assert [o.split for o in executor.orders if large in o.task.stages] == [1, *SPLITS]
    assert Store(tmp_path / "store").failures()[large.key].cause == "oom"


@pytest.mark.parametrize("cause", ["bug", "nan"])
def test_an_error_of_ones_own_is_not_tried_again(small: str, tmp_path: Path, cause: str) -> None:
    plan = make_plan(parse(small))
    wrong = finetune_of(plan, 1)
    outcome, executor = simulate(
        plan, tmp_path, fails=lambda order, stage: cause if stage == wrong else None
    )
    assert outcome.failed[wrong.key].cause == cause
    assert sum(wrong in order.task.stages for order in executor.orders) == 1


def test_a_store_that_is_away_is_waited_for(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    unlucky, times = finetune_of(plan, 1), iter(range(MAX_STORAGE - 1))

    def fails(order: WorkOrder, stage: Stage) -> str | None:
        return "storage" if stage == unlucky and next(times, None) is not None else None

    outcome, _ = simulate(plan, tmp_path, fails=fails)
    assert outcome.ok


def test_a_silent_worker_loses_its_task(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    slow, times = finetune_of(plan, 1), iter(range(MAX_HANGS - 1))
    rules = Rules(stage_timeout_s=90)
    outcome, executor = simulate(
        plan,
        tmp_path,
        rules=rules,
        hangs=lambda stage: stage == slow and next(times, None) is not None,
    )
    assert outcome.ok
    assert executor.now_s > 90


def test_what_hangs_everywhere_fails(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    slow = finetune_of(plan, 1)
    rules = Rules(stage_timeout_s=90)
    outcome, executor = simulate(plan, tmp_path, rules=rules, hangs=lambda stage: stage == slow)
    assert outcome.failed[slow.key].cause == "hang"
    assert "nothing was heard for 1.5 min" in outcome.failed[slow.key].message
    assert sum(slow in order.task.stages for order in executor.orders) == MAX_HANGS


class WithoutGpus(Simulated):
    """A cluster that a GPU comes to after a while."""

    def lacks(self) -> str:
        return "waiting for 1 GPU; this cluster has 0" if self.now_s < 3 else ""

    def workers(self) -> Workers:
        return super().workers() if self.now_s >= 3 else Workers([], most=1)


def test_what_no_machine_has_is_said_once_and_waited_for(small: str, tmp_path: Path) -> None:
    plan = make_plan(parse(small))
    heard: list[Event] = []
    with WithoutGpus(ExecutorSettings(workers=1)) as executor:
        tasks, store = make_tasks(plan, (), ()), Store(tmp_path / "store")
        outcome = Scheduler(tasks, (), executor, store, tmp_path / "logs", heard.append).run()
    assert outcome.ok
    [waits] = [event for event in heard if isinstance(event, TaskWaits)]
    assert waits.reason == "waiting for 1 GPU; this cluster has 0"
    page = io.StringIO()
    Progress(plan, (), 1, Console(file=page)).note(waits)
    assert page.getvalue() == f"{waits.reason}\n"
