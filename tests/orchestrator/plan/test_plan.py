"""Plan: trials merged into a tree of unique stages, with their controls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.sweepfile.load import parse

Calls = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("calls")


def plan_of(small: str, *overrides: str) -> Plan:
    return make_plan(parse(small, None, overrides))


def digests(plan: Plan) -> set[str]:
    return {stage.digest for stage in plan.stages}


def test_counts_of_a_known_sweep(small: str) -> None:
    """2 methods × 2 rates × 3 step counts × 2 seeds, and 2 × 3 × 2 controls.

    Unlearned models: nudge once (no randomness), shake once a seed. Fine-tunes: 2 step counts
    for each of 2 methods × 2 rates × 2 seeds, and of 2 × 2 controls. Images of each, of the three
    unlearned models and of the base. The data set is prepared once.
    """
    plan = plan_of(small)
    assert len(plan.trials) == 24 + 12
    assert plan.count() == {
        **{"prepare": 1, "unlearn": 3, "finetune": 24},
        **{"sample": 28, "score": 28},
    }
    assert plan.count_naive() == {
        **{"prepare": 24, "unlearn": 24, "finetune": 24},
        **{"sample": 84, "score": 84},
    }


def test_a_trajectory_is_trained_once(small: str) -> None:
    plan = plan_of(small)
    assert plan.steps() == 12 * 2
    assert plan.steps_naive() == 12 * (1 + 2)


def test_no_fine_tuning_is_the_unlearned_model(small: str) -> None:
    plan = plan_of(small)
    for planned in plan.trials:
        if planned.trial.params["finetune.steps"] == 0:
            assert planned.final == planned.unlearned


def test_a_data_set_is_prepared_once_whoever_fine_tunes_on_it(small: str) -> None:
    """Before and after unlearning, in every sweep; from the base, without a seed."""
    plan = plan_of(small, "finetune.dataset=[dots, {dots: {level: 0}}]", "concept=[star, heart]")
    prepared = [s for s in plan.stages if s.kind == "prepare"]
    assert len(prepared) == 2
    assert all(s.parent == plan.root and s.seed is None for s in prepared)
    for stage in plan.stages:
        if stage.kind == "finetune":
            [data] = stage.inputs.values()
            assert data.settings["dataset"] == stage.settings["dataset"]
            assert data in prepared
    assert set(prepared) & set(plan_of(small).stages) == {prepared[0]}


def test_a_trial_compares_the_models_along_its_chain(small: str) -> None:
    planned = next(t for t in plan_of(small).trials if t.trial.params["finetune.steps"] == 2)
    assert [s.kind for s in planned.final.model.ancestry()] == ["finetune", "unlearn", "base"]
    assert planned.unlearned.model == planned.final.model.parent
    assert planned.base.model == planned.unlearned.model.parent


def test_controls_are_the_same_fine_tuning_without_unlearning(small: str) -> None:
    plan = plan_of(small)
    controls = {t.final.model.digest: t for t in plan.trials if t.is_control}
    for planned in plan.trials:
        if planned.is_control:
            assert planned.control is None
            assert planned.params["unlearn.method"] == "none"
            continue
        control = controls[planned.control]
        assert [e.kind for e in control.trial.edits] == ["finetune"]
        if planned.params["finetune.steps"]:  # at 0 steps every control is the base itself
            for axis in ("finetune.learning_rate", "finetune.steps", "seed"):
                assert control.params[axis] == planned.params[axis]


def test_controls_can_be_left_out(small: str) -> None:
    plan = plan_of(small, "evaluate.controls=false")
    assert not any(t.is_control or t.control for t in plan.trials)


@pytest.mark.parametrize(
    "override",
    [
        "finetune.steps=[0, 1, 2, 3]",
        "seeds=3",
        "unlearn=[nudge, shake, {nudge: {amount: 0.5}}]",
        "evaluate.metrics=[brightness, weight_distance]",
        "concept=[star, heart]",
    ],
)
def test_what_is_added_leaves_the_rest_as_it_was(small: str, override: str) -> None:
    assert digests(plan_of(small)) < digests(plan_of(small, override))


def test_where_it_runs_does_not_count(small: str) -> None:
    moved = plan_of(small, "resources.workers=7", "evaluate.batch_size=3", "keep=[finetuned]")
    assert digests(moved) == digests(plan_of(small))


def test_fine_tunes_of_the_base_are_shared_by_concepts(small: str) -> None:
    plan = plan_of(small, "concept=[star, heart]")
    controls = [s for s in plan.stages if s.kind == "finetune" and s.parent == plan.root]
    assert len(controls) == 2 * 2 * 2  # rates × seeds × step counts, not × concepts


def test_data_that_do_not_depend_on_the_concept_say_so(small: str) -> None:
    """Controls on them are shared too; data that leave the erased concept out cannot be."""

    def controls(dataset: str) -> int:
        several = small.replace("base: tiny", "base: shapes").replace("dataset: dots", dataset)
        plan = plan_of(several, "concept=[star, heart]", "unlearn=uce", "seeds=1")
        return sum(s.kind == "finetune" and s.parent == plan.root for s in plan.stages)

    assert controls("dataset: digits") == 2 * 2  # rates × step counts
    assert controls("dataset: related") == 2 * 2 * 2  # × concepts


def test_each_trial_has_a_name_of_its_own(small: str) -> None:
    plan = plan_of(small)
    assert len({t.digest for t in plan.trials}) == len(plan.trials)


def test_probes_ask_for_the_erased_the_retained_and_the_unknown(small: str) -> None:
    probes = plan_of(small).trials[0].base.sample.settings["probes"]
    assert [(p["role"], p["concept"], p["prompt"]) for p in probes] == [
        ("erased", "star", "a star"),
        ("erased", "star", "a red star"),
        ("retained", "heart", "a heart"),
        ("retained", "circle", "a circle"),
        ("never_known", "bolt", "a bolt"),
        ("never_known", "bolt", "a red bolt"),
    ]


def test_longer_chains(small: str) -> None:
    """Fine-tune, unlearn, fine-tune: resurgence is measured from the last unlearning."""
    chain = small.replace(
        "edits:\n", "edits:\n  - finetune: {dataset: dots, steps: 1, batch_size: 2}\n"
    )
    planned = next(
        t for t in make_plan(parse(chain)).trials if t.trial.params.get("finetune_2.steps") == 2
    )
    kinds = [s.kind for s in planned.final.model.ancestry()]
    assert kinds == ["finetune", "unlearn", "finetune", "base"]
    assert planned.unlearned.model.kind == "unlearn"


SET = "concept={name: pair, concepts: [star, heart]}"


def unlearned(plan: Plan) -> dict[str, Stage]:
    """The unlearned model of each order, of the fine-tuned trials."""
    return {
        str(t.params["unlearn.order"]): t.unlearned.model
        for t in plan.trials
        if not t.is_control and t.steps == 2
    }


def ordered(small: str, method: str = "nudge") -> Plan:
    text = small.replace("[nudge, shake]", f"{{method: {method}, order: [independent, continual]}}")
    return plan_of(text, SET, "seeds=1", "finetune.learning_rate=1e-3")


def test_one_concept_after_another_or_each_from_the_same_model(small: str) -> None:
    plan = ordered(small)
    continual, independent = unlearned(plan)["continual"], unlearned(plan)["independent"]
    first = continual.parent
    assert first is not None
    assert [s.settings["concept"] for s in (first, continual)] == ["star", "heart"]
    assert independent.kind == "merge" and independent.unlearns
    donor = independent.inputs["donor"]
    assert independent.parent == first
    assert (donor.settings["concept"], donor.parent) == ("heart", plan.root)


def test_every_model_of_a_chain_of_unlearnings_is_evaluated(small: str) -> None:
    for planned in ordered(small).trials:
        if planned.is_control:
            assert planned.way == ()
            continue
        erased = [point.model.settings["concept"] for point in planned.way]
        is_apart = planned.params["unlearn.order"] == "independent"
        assert erased == (["star", "heart"] if is_apart else ["star"])
        assert all(point.sample in planned.stages() for point in planned.way)
        assert all(point.sample.settings["probes"] for point in planned.way)


def test_a_control_of_a_chain_is_evaluated_at_each_of_its_points(small: str) -> None:
    text = small.replace(
        "  - unlearn: [nudge, shake]\n",
        "  - unlearn: {nudge: {}, concepts: star}\n"
        "  - finetune: {dataset: dots, steps: 3, batch_size: 2}\n"
        "  - unlearn: {nudge: {}, concepts: heart}\n",
    )
    plan = plan_of(text, SET, "seeds=1", "finetune_2.learning_rate=1e-3", "finetune_2.steps=2")
    [trial, control] = plan.trials
    assert [point.model.kind for point in trial.way] == ["unlearn", "finetune"]
    assert [point.model.kind for point in control.way] == ["finetune"]
    assert control.way[0].model.parent == plan.root
    assert control.final.model.parent == control.way[0].model


def test_one_concept_is_the_same_in_every_order(small: str) -> None:
    plan = plan_of(
        small.replace("[nudge, shake]", "{nudge: {}, order: [independent, simultaneous]}")
    )
    assert plan.count()["unlearn"] == 1
    assert digests(plan) <= digests(plan_of(small))


def test_a_set_of_one_is_the_concept_whatever_it_is_called(small: str) -> None:
    named = plan_of(small, "concept={name: mine, concepts: [star]}")
    assert digests(named) == digests(plan_of(small))


def test_a_method_is_told_what_it_erases_jointly(small: str) -> None:
    plan = plan_of(small.replace("[nudge, shake]", "uce"), SET)
    [stage] = [s for s in plan.stages if s.kind == "unlearn"]
    assert [t["concept"] for t in stage.settings["targets"]] == ["star", "heart"]
    assert stage.settings["retained_prompts"] == ["a circle", "a red circle"]
    assert "concept" not in stage.settings


INVERSION = (
    "finetune.adapter=textual_inversion",
    "finetune.placeholder=<mug>",
    "finetune.initializer=[circle, heart]",
    "finetune.caption=a <mug>",
    'evaluate.prompts=["a {concept}", "a {concept} <mug>"]',
)


def test_models_that_have_not_learned_a_token_read_it_as_what_it_begins_as(small: str) -> None:
    """So each trial's models are asked the same: the base is drawn once for each beginning."""
    brief = ("unlearn=nudge", "finetune.learning_rate=1e-3", "seeds=1", "evaluate.controls=false")
    plan = plan_of(small, *brief, *INVERSION)
    for planned in plan.trials:
        read = {"<mug>": planned.params["finetune.initializer"]}
        for point in (planned.base, planned.unlearned, planned.final):
            assert point.sample.settings["placeholders"] == read
    assert len({planned.base.sample for planned in plan.trials}) == 2
    asked_nothing = plan_of(small, *brief, "finetune.adapter=lora")
    assert not any("placeholders" in s.settings for s in asked_nothing.stages)


def test_prior_pictures_are_drawn_once_of_the_model_that_is_fine_tuned(small: str) -> None:
    booth = ("finetune.prior_weight=1.0", "finetune.prior_prompt=a star", "finetune.prior_images=2")
    plan = plan_of(small, *booth, "unlearn=nudge", "finetune.learning_rate=1e-3", "seeds=1")
    drawn = [s for s in plan.stages if s.kind == "prepare" and s.plugin == "images"]
    tuned = [s for s in plan.stages if s.kind == "finetune"]
    assert {s.parent for s in drawn} == {s.parent for s in tuned}
    assert len(drawn) == 2  # of the unlearned model, and of the control's base
    assert all(s.inputs["prior"].parent == s.parent for s in tuned)
    assert not set(tuned) & set(plan_of(small).stages)
    elsewhere = plan_of(small, *booth, "unlearn=nudge", "finetune.trained_on=base")
    drawn = [s for s in elsewhere.stages if s.kind == "prepare" and s.plugin == "images"]
    assert [s.parent for s in drawn] == [elsewhere.root]
