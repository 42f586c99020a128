"""Tasks: what runs back to back with the model in memory."""

from __future__ import annotations

import math

import pytest

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.usefixtures("calls")
KEEP = ("unlearned",)


def plan_of(small: str, *overrides: str) -> Plan:
    return make_plan(parse(small, None, overrides))


def test_every_stage_is_in_one_task_after_its_parent(small: str) -> None:
    plan = plan_of(small)
    tasks = make_tasks(plan, (), KEEP)
    placed = [stage for task in tasks for stage in task.stages]
    assert len(placed) == len(set(placed)) == len(plan.stages)
    for task in tasks:
        seen = {plan.root, task.after}
        for stage in task.stages:
            assert stage.parent in seen
            seen.add(stage)


def test_a_trajectory_evaluates_each_step_count_before_it_trains_on(small: str) -> None:
    task = next(t for t in make_tasks(plan_of(small), (), KEEP) if t.stages[0].kind == "finetune")
    assert [(s.kind, s.model.steps) for s in task.stages] == [
        ("finetune", 1),
        ("sample", 1),
        ("score", 1),
        ("finetune", 2),
        ("sample", 2),
        ("score", 2),
    ]


def test_an_unlearning_with_several_children_is_a_task_of_its_own(small: str) -> None:
    tasks = make_tasks(plan_of(small), (), KEEP)
    kinds = [[s.kind for s in t.stages] for t in tasks if t.stages[0].kind == "unlearn"]
    assert kinds == [["unlearn", "sample", "score"]] * 3


def test_an_only_child_runs_on_in_its_parents_task(small: str) -> None:
    plan = plan_of(small, "finetune.learning_rate=1e-3", "seeds=1", "unlearn=nudge")
    (task,) = [t for t in make_tasks(plan, (), KEEP) if t.stages[0].kind == "unlearn"]
    assert [s.kind for s in task.stages].count("finetune") == 2
    assert [s.kind for s in task.inputs] == ["prepare"]  # waited for before the unlearning


def test_what_reads_a_data_set_waits_for_it(small: str) -> None:
    tasks = make_tasks(plan_of(small, "finetune.dataset=[dots, {dots: {level: 0}}]"), (), KEEP)
    prepared = {s for task in tasks if task.stages[0].kind == "prepare" for s in task.stages}
    assert len(prepared) == 2
    for task in tasks:
        wanted = {i for stage in task.stages for i in stage.inputs.values()}
        assert wanted == prepared & set(task.waits_for)


def test_a_picture_that_is_there_is_not_waited_for(small: str) -> None:
    """A metric that is added later compares with pictures that are done."""
    plan = plan_of(small, "evaluate.metrics=[brightness, drift]")
    done = {stage.key for stage in plan.stages if stage.plugin != "drift"}
    tasks = make_tasks(plan, done, KEEP)
    assert {stage.plugin for task in tasks for stage in task.stages} == {"drift"}


def test_data_then_the_base_go_first_and_long_paths_before_short_ones(small: str) -> None:
    tasks = make_tasks(plan_of(small, "finetune.steps=[1, 50]"), (), KEEP)
    costs = [task.path_cost for task in tasks]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == math.inf
    assert [s.kind for s in tasks[0].stages] == ["prepare"]
    assert {s.kind for s in tasks[1].stages} == {"sample", "score"}
    unlearning = next(t for t in tasks if t.stages[0].kind == "unlearn")
    child = next(t for t in tasks if t.after == unlearning.stages[0])
    assert unlearning.path_cost > child.path_cost


def test_what_is_done_is_left_out(small: str) -> None:
    plan = plan_of(small)
    everything = {stage.key for stage in plan.stages}
    assert make_tasks(plan, everything, KEEP) == ()
    (score,) = plan.trials[0].base.scores
    (task,) = make_tasks(plan, everything - {score.key}, KEEP)
    assert task.stages == (score,)


def test_weights_are_saved_where_someone_needs_them(small: str) -> None:
    plan = plan_of(small)
    saved = {d for t in make_tasks(plan, (), ()) for d in t.save}
    assert saved == {s.digest for s in plan.stages if s.kind == "unlearn"}
    kept = {d for t in make_tasks(plan, (), ("finetuned",)) for d in t.save}
    assert kept == {s.digest for s in plan.stages if s.is_model}


MATERIALS = """
name: materials
base: shapes
concept: star
edits: [{unlearn: salun}]
evaluate: {metrics: [concept_accuracy]}
"""


def test_what_reads_a_material_waits_for_it_unless_it_is_there() -> None:
    plan = make_plan(parse(MATERIALS))
    made = {stage.key for stage in plan.stages if stage.kind == "prepare"}
    [unlearning] = [task for task in make_tasks(plan, (), ()) if task.inputs]
    assert {stage.key for stage in unlearning.inputs} <= made
    resumed = make_tasks(plan, made, ())
    assert [stage.kind for task in resumed for stage in task.stages].count("unlearn") == 1
    assert not any(stage.kind == "prepare" for task in resumed for stage in task.stages)


def test_scores_are_apart_where_there_are_workers_for_them(small: str) -> None:
    plan = make_plan(parse(small))
    tasks = make_tasks(plan, (), (), has_score_workers=True)
    apart = [task for task in tasks if task.pool == "score"]
    scored = {stage for task in apart for stage in task.stages}
    of_pictures = {s for s in plan.stages if s.kind == "score" and s.parent.kind == "sample"}
    assert scored == of_pictures
    assert sum(len(task.stages) for task in tasks) == len(plan.stages)
    for task in apart:
        assert {stage.parent for stage in task.stages} <= set(task.waits_for)
        assert not any(stage.is_model for stage in task.waits_for)
    asked = [score for task in tasks for score in task.judges]  # before the pictures are drawn
    assert set(asked) == scored and len(asked) == len(scored)
    assert all(score.parent in task.stages for task in tasks for score in task.judges)


def test_scores_stay_with_their_model_otherwise(small: str) -> None:
    assert {task.pool for task in make_tasks(make_plan(parse(small)), (), ())} == {"model"}
