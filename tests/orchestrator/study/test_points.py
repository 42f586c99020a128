"""Points of a search: their trials, their rungs, what a study hangs on, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import make_plan
from orchestrator.results.groups import Group, GroupNumbers
from orchestrator.results.measure import Measured, Pictures, Scores
from orchestrator.stats.paired import Estimate, Paired
from orchestrator.study.points import PointPlanner, numbers_of
from orchestrator.sweep.search import Search
from orchestrator.sweepfile.load import parse

TEXT = """
name: worst
base: shapes
concept: star
edits:
  - unlearn: [uce, esd]
  - finetune: {batch_size: 8}
evaluate: {metrics: [concept_accuracy, finetune_success]}
seeds: [3, 5]
search:
  maximize: resurgence
  for_each: unlearn.method
  space:
    finetune.dataset: [related, unrelated]
    finetune.adapter: [full, lora]
    finetune.lora_rank: {choices: [4, 16], when: {finetune.adapter: lora}}
    finetune.learning_rate: {log: [1.0e-5, 3.0e-3]}
    finetune.steps: {int: [25, 400], step: 25}
  pruner: hyperband
  confirm: {top: 3, seeds: 4}
"""

POINT = {
    "unlearn.method": "esd",
    "finetune.dataset": "related",
    "finetune.adapter": "lora",
    "finetune.lora_rank": 16,
    "finetune.learning_rate": 1e-3,
    "finetune.steps": 200,
}


def points_of(*overrides: str, text: str = TEXT) -> PointPlanner:
    return PointPlanner(parse(text, None, overrides))


def test_a_point_is_a_trial_a_seed() -> None:
    trials = points_of().trials(POINT)
    assert [trial.seed for trial in trials] == [3, 5]
    for trial in trials:
        assert POINT.items() <= trial.params.items()
        assert trial.params["finetune.batch_size"] == 8
        assert trial.edits[1].plugin.settings.lora_rank == 16


def test_a_points_stages_are_those_of_a_sweep() -> None:
    """So what either has measured, the other finds in the store."""
    recipe = "dataset: related, adapter: lora, lora_rank: 16, learning_rate: 1e-3, steps: 200"
    overrides = ("unlearn=esd", f"finetune={{{recipe}, batch_size: 8}}", "evaluate.controls=false")
    sweep = parse(TEXT[: TEXT.index("search:")].replace("{batch_size: 8}", "{}"), None, overrides)
    points = points_of()
    plan = points.plan(points.trials(POINT))
    assert {s.digest for s in plan.stages} == {s.digest for s in make_plan(sweep).stages}
    assert plan.trials[0].digest == make_plan(sweep).trials[0].digest


def test_fewer_steps_are_a_part_of_the_same_trajectory() -> None:
    points = points_of()
    few, many = (points.plan(points.trials(POINT, steps)) for steps in (50, 200))
    assert {t.final.model.trajectory for t in few.trials} == {
        t.final.model.trajectory for t in many.trials
    }
    assert [t.steps for t in few.trials] == [50, 50]


def test_confirming_is_on_seeds_that_the_search_never_sees() -> None:
    points = points_of()
    assert points.fresh_seeds == (6, 7, 8, 9)
    plan = points.confirming(POINT)
    assert [t.trial.seed for t in plan.trials if not t.is_control] == [6, 7, 8, 9]
    assert sum(t.is_control for t in plan.trials) == 4
    without = points_of("evaluate.controls=false").confirming(POINT)
    assert not any(t.is_control for t in without.trials)


def test_settings_that_do_not_go_together_are_told() -> None:
    points = points_of("finetune.warmup_steps=30", "finetune.schedule=linear",
                       "search.space.finetune.steps={int: [50, 400], step: 25}")  # fmt: skip
    with pytest.raises(ResurgeError, match=r"warmup_steps \(30\) must be below steps \(25\)"):
        points.trials({**POINT, "finetune.steps": 25})


def test_data_are_looked_at_once_for_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.datasets.related import Related

    made: list[str] = []
    init = Related.__init__

    def counting(self: Any, settings: Any) -> None:
        made.append("related")
        init(self, settings)

    monkeypatch.setattr(Related, "__init__", counting)
    points = points_of()
    for steps in (25, 50, 75):
        points.trials({**POINT, "finetune.steps": steps})
    assert len(made) == 1


@pytest.mark.parametrize(
    ("steps", "ladder"),
    [
        ("{int: [25, 400], step: 25}", (50, 125, 400)),
        ("{int: [25, 200], step: 25}", (75, 200)),
        ("{int: [25, 225], step: 25}", (25, 75, 225)),
        ("{int: [0, 400], step: 25}", (50, 125, 400)),
        ("{int: [0, 10]}", (1, 3, 10)),
        ("{int: [100, 250]}", (250,)),
        ("[0, 25, 50, 100, 200, 400]", (50, 100, 400)),
        ("[100, 400]", (100, 400)),
        ("[0]", ()),
    ],
)
def test_the_ladder_goes_down_by_thirds(steps: str, ladder: tuple[int, ...]) -> None:
    assert points_of(f"search.space.finetune.steps={steps}").ladder == ladder


def test_a_point_is_measured_at_the_rungs_below_its_own_steps() -> None:
    points = points_of()
    assert points.rungs(POINT) == (50, 125, 200)
    assert points.rungs({**POINT, "finetune.steps": 125}) == (50, 125)
    assert points.rungs({**POINT, "finetune.steps": 25}) == (25,)
    assert points.rungs({**POINT, "finetune.steps": 400}) == (50, 125, 400)


def test_only_its_own_steps_where_nothing_is_pruned_or_fewer_are_no_beginning() -> None:
    assert points_of("search.pruner=none").rungs(POINT) == (200,)
    assert points_of("finetune.schedule=cosine").rungs(POINT) == (200,)
    fixed = TEXT.replace("    finetune.steps: {int: [25, 400], step: 25}\n", "").replace(
        "pruner: hyperband", "pruner: none"
    )
    points = points_of("finetune.steps=70", text=fixed)
    assert points.rungs({k: v for k, v in POINT.items() if k != "finetune.steps"}) == (70,)


def test_a_search_may_end_with_an_unlearning() -> None:
    text = TEXT.replace("  - unlearn: [uce, esd]\n", "").replace(
        "evaluate:", "  - unlearn: [uce, esd]\nevaluate:"
    )
    points = points_of("search.pruner=none", text=text)
    assert points.rungs(POINT) == (0,)
    assert points.trials(POINT, 0)[0].params["finetune.steps"] == 200


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("name=other", True),
        ("search.trials=99", True),
        ("search.sampler=random", True),
        ("search.confirm.top=1", True),
        ("keep=[]", True),
        ("resources.workers=7", True),
        ("unlearn=[uce, esd, sdd]", True),  # another study's business
        ("finetune.batch_size=16", False),
        ("seeds=[3]", False),
        ("concept=heart", False),
        ("evaluate.images_per_prompt=2", False),
        ("unlearn=[uce, {esd: {group: u}}]", False),
        ("search.subject_to={retained_accuracy: '>= 0.5'}", False),
    ],
)
def test_a_study_hangs_on_what_its_values_hang_on(override: str, is_same: bool) -> None:
    fixed = {"unlearn.method": "esd"}
    assert (points_of(override).identity(fixed) == points_of().identity(fixed)) == is_same


def search_of(*overrides: str) -> Search:
    search = parse(TEXT, None, overrides).search
    assert search is not None
    return search


def measured(metrics: Mapping[str, float], **changed: Any) -> Measured:
    points = points_of()
    planned = points.plan(points.trials(POINT)).trials[0]
    values = {
        "planned": planned,
        "status": "done",
        "base": Scores(1.0, 1.0),
        "unlearned": Scores(0.1, 0.9),
        "final": Scores(0.6, 0.8, 0.05),
        "control": None,
        "paired": None,
        "unlearning_failed": False,
        "model_ruined": False,
        "pictures": Pictures(),
        "metrics": metrics,
        "seconds": 1.0,
    }
    return Measured(**{**values, **changed})


def test_numbers_are_means_over_the_seeds() -> None:
    search = search_of("search.maximize=erased_accuracy")
    trials = [
        measured({"finetune_success.improvement": 0.2, "only.here": 1.0}),
        measured({"finetune_success.improvement": 0.4}, final=Scores(0.8, 0.6)),
    ]
    found = numbers_of(trials, POINT, search).found
    assert found["erased_accuracy"] == pytest.approx(0.7)
    assert found["retained_accuracy"] == pytest.approx(0.7)
    assert found["finetune_success.improvement"] == pytest.approx(0.3)
    assert found["finetune.steps"] == 200
    assert "only.here" not in found  # not every seed has it
    assert "resurgence" not in found


def test_a_metrics_name_means_its_mean_over_the_erased_concept_or_its_first_number() -> None:
    search = search_of("search.maximize=concept_accuracy")
    metrics = {
        "concept_accuracy.retained.circle": 0.9,
        "clip.mean": 3.0,
        "clip.erased": 2.0,
        "success.share": 5.0,
        "success.other": 6.0,
    }
    found = numbers_of([measured(metrics)], POINT, search).found
    assert found["concept_accuracy"] == 0.6
    assert found["concept_accuracy.retained"] == 0.8
    assert found["clip"] == 2.0
    assert found["success"] == 5.0


def test_synonyms_and_concepts_of_a_set_are_numbers_of_each_model() -> None:
    search = search_of(
        "search.maximize=synonym", "search.subject_to={unlearned.synonym: '<= 50% of base'}"
    )
    flat = Estimate(0.3, 0.3, 0.3)
    group = GroupNumbers(Group("synonym"), 0.9, 0.2, 0.5, Paired(flat, None, 0.5), flat, flat)
    numbers = numbers_of([measured({}, groups=(group,))], POINT, search)
    assert numbers.found["synonym"] == 0.5
    assert numbers.found["base.synonym"] == 0.9
    assert numbers.violations["unlearned.synonym <= 50% of base"] == pytest.approx(0.2 - 0.45)


def test_bounds_are_broken_by_how_much() -> None:
    search = search_of(
        "search.maximize=erased_accuracy",
        "search.subject_to={retained_accuracy: '>= 0.9', erased_accuracy: '<= 0.9'}",
    )
    numbers = numbers_of([measured({})], POINT, search)
    assert numbers.missing is None
    assert numbers.violations["retained_accuracy >= 0.9"] == pytest.approx(0.1)
    assert numbers.violations["erased_accuracy <= 0.9"] < 0
    assert numbers.violations["unlearning_failed"] == 0


def test_an_unlearning_that_failed_on_some_seed_breaks_a_bound() -> None:
    search = search_of("search.maximize=erased_accuracy")
    trials = [measured({}), measured({}, unlearning_failed=True)]
    found = numbers_of(trials, POINT, search)
    assert found.violations == {"unlearning_failed": 0.5, "model_ruined": 0}
    assert "model_ruined" not in found.found


def test_a_model_that_unlearning_ruined_on_some_seed_breaks_a_bound_and_is_told() -> None:
    search = search_of("search.maximize=erased_accuracy")
    found = numbers_of([measured({}), measured({}, model_ruined=True)], POINT, search)
    assert found.violations == {"unlearning_failed": 0, "model_ruined": 0.5}
    assert found.found["model_ruined"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_told_and_is_no_value(value: float) -> None:
    search = search_of("search.maximize=finetune_success.improvement")
    numbers = numbers_of([measured({"finetune_success.improvement": value})], POINT, search)
    assert numbers.missing == f"finetune_success.improvement is {value}"
    assert "finetune_success.improvement" not in numbers.found


def test_a_recovery_that_is_undefined_is_told() -> None:
    numbers = numbers_of([measured({})], POINT, search_of("search.maximize=recovery"))
    assert numbers.missing is not None and "recovery is undefined" in numbers.missing


def test_a_number_that_no_metric_gives_is_an_error_with_the_nearest_name() -> None:
    search = search_of("search.maximize=finetune_success.improvment")
    with pytest.raises(ResurgeError, match=r"did you mean 'finetune_success\.improvement'"):
        numbers_of([measured({"finetune_success.improvement": 0.2})], POINT, search)
