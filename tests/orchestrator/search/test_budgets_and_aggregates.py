"""Budgets beside trials, several bounds, aggregated axes, saved worst cases: on the real stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.saving import refuse_others_file, save_worst
from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import make_plan
from orchestrator.search.worst_sweep import about, worst_sweep
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import is_complete, read_studies
from orchestrator.study.tried import counted
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import as_text, load, parse
from orchestrator.tracking.search_runs import StudyView
from tests.orchestrator.search.test_searcher import RATES, Hunt, sweep_of, table_of

pytestmark = [
    pytest.mark.usefixtures("calls"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* experimental"),
]
RANGE = "search.space.finetune.steps={int: [1, 3]}"


@pytest.fixture
def hunt(tmp_path: Path) -> Hunt:
    return Hunt(tmp_path)


def is_over(hunt: Hunt, sweep: Sweep) -> bool:
    points = PointPlanner(sweep)
    return is_complete(points, read_studies(points, hunt.storage), hunt.store)


def test_no_trial_begins_after_the_budget_of_steps_is_spent(hunt: Hunt) -> None:
    sweep = sweep_of(RATES, "search.steps=3")
    hunt.run(sweep, parallel=1)
    # 1 step of the one rate, 1 of the other, then the first one's second.
    tried = counted(hunt.tried(sweep))
    assert [t.point["finetune.steps"] for t in tried] == [1, 1, 2]
    assert is_over(hunt, sweep)
    [case] = hunt.cases(sweep)
    assert case.is_spent and case.to_come == 0
    assert "to come" not in table_of(hunt, sweep)
    assert hunt.run(sweep).told_trials == []
    longer = sweep_of(RATES, "search.steps=4")
    assert not is_over(hunt, longer)
    assert len(hunt.run(longer, parallel=1).told_trials) == 1


def test_no_trial_begins_after_the_budget_of_hours_is_spent(hunt: Hunt) -> None:
    sweep = sweep_of(RATES, "search.gpu_hours=1e-9")
    hunt.run(sweep, parallel=1)
    assert 1 <= len(counted(hunt.tried(sweep))) <= 2  # one was asked for ahead
    assert is_over(hunt, sweep)
    assert not is_over(hunt, sweep_of(RATES, "search.gpu_hours=1000"))


def test_one_study_has_a_worst_case_for_each_of_several_bounds(hunt: Hunt) -> None:
    sweep = sweep_of(
        RANGE,
        "search.subject_to={finetune.steps: ['<= 2', '<= 3', '<= 0']}",
        "search.confirm.top=1",
        "search.confirm.seeds=1",
    )
    hunt.run(sweep)
    loose, tight, impossible = hunt.cases(sweep)
    assert [c.level for c in (loose, tight, impossible)] == [
        "finetune.steps <= 3",
        "finetune.steps <= 2",
        "finetune.steps <= 0",
    ]
    trials = {t.point["finetune.steps"]: t.values[0] for t in hunt.tried(sweep)}
    assert loose.worst is not None and tight.worst is not None
    assert loose.worst.searched == max(trials.values())
    assert tight.worst.searched == max(v for steps, v in trials.items() if steps <= 2)
    assert tight.worst.tried.point["finetune.steps"] <= 2
    assert impossible.worst is None and not impossible.is_answered
    shown = table_of(hunt, sweep)
    assert "hunt · finetune.steps <= 2" in shown
    assert "hunt · finetune.steps <= 0: nothing to confirm: no setting kept every bound" in shown
    assert is_over(hunt, sweep)
    view = StudyView(PointPlanner(sweep), hunt.storage, hunt.store)
    confirmed = [run for run in view.runs() if run.kind == "confirmed"]
    assert len(confirmed) == len({one.tried.number for c in (loose, tight) for one in c.confirmed})


def test_the_largest_over_methods_is_confirmed_for_the_method_that_it_is_of(hunt: Hunt) -> None:
    sweep = sweep_of(
        "unlearn=[dim, nudge]",
        "search.aggregate={max: unlearn.method}",
        "search.confirm.top=1",
        "search.confirm.seeds=2",
    )
    hunt.run(sweep)
    [case] = hunt.cases(sweep)
    assert len(case.measured) == 3
    for tried in case.measured:
        each = [v for n, v in tried.numbers.items() if n.startswith("resurgence of ")]
        assert each and max(each) == tried.values[0]
    worst = case.worst
    assert worst is not None and worst.goal is not None
    assert worst.member in ("dim", "nudge")
    assert worst.setting.params["unlearn.method"] == worst.member
    assert worst.setting.planned == 2
    assert f"({worst.member})" in table_of(hunt, sweep)


def test_a_mean_over_concepts_is_confirmed_over_all_of_them(hunt: Hunt) -> None:
    sweep = sweep_of(
        "concept=[star, heart]",
        "search.aggregate=mean",
        "search.for_each=concept",
        "search.confirm.top=1",
        "search.confirm.seeds=2",
    )
    hunt.run(sweep)
    [case] = hunt.cases(sweep)
    points = PointPlanner(sweep)
    for tried in case.measured:
        each = [tried.numbers[f"resurgence of {name}"] for name in ("star", "heart")]
        assert tried.values[0] == pytest.approx(sum(each) / 2)
    [one] = case.confirmed
    assert one.setting.planned == 4 and one.member == "" and one.goal is not None
    each = [one.numbers[f"resurgence of {name}"] for name in ("star", "heart")]
    assert one.goal.value == pytest.approx(sum(each) / 2)
    assert {t.trial.seed for t in points.confirming(one.tried.point).trials} == {1, 2}


def test_the_worst_settings_are_a_sweep_that_the_store_has_already(hunt: Hunt) -> None:
    sweep = sweep_of(
        "unlearn=[dim, nudge]",
        "search.for_each=unlearn.method",
        RATES,
        "search.confirm.top=1",
        "search.confirm.seeds=2",
    )
    hunt.run(sweep)
    cases = hunt.cases(sweep)
    saved = parse(as_text(worst_sweep(sweep, cases)))
    assert saved.name == "hunt_worst" and saved.search is None
    plan = make_plan(saved)
    recipes = {
        tuple(sorted((k, v) for k, v in c.worst.tried.point.items() if k != "unlearn.method"))
        for c in cases
        if c.worst
    }
    ordinary = [t for t in plan.trials if not t.is_control]
    assert len(ordinary) == len(recipes) * 2 * 2  # methods, fresh seeds
    keys = {stage.key for stage in plan.stages}
    points = PointPlanner(sweep)
    found = [case for case in cases if case.worst]
    assert found
    for case in found:
        assert case.worst is not None
        assert {s.key for s in points.confirming(case.worst.tried.point).stages} <= keys
        assert case.name in about(case)
    path = hunt.root / "worst.yaml"
    for _ in range(2):  # its own file may be written again
        refuse_others_file(path)
        save_worst(sweep, cases, path)
    assert load(path) == saved


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("notes.yaml", "is there already and was not saved by a search"),
        (".", "is a folder"),
        ("nowhere/worst.yaml", "there is no folder"),
    ],
)
def test_only_a_saved_file_is_written_over(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("name: mine")
    with pytest.raises(ResurgeError, match=why):
        refuse_others_file(tmp_path / name)


def test_a_search_that_found_nothing_has_nothing_to_save(hunt: Hunt) -> None:
    sweep = sweep_of(RANGE, "search.subject_to={finetune.steps: '<= 0'}")
    hunt.run(sweep)
    with pytest.raises(ResurgeError, match="no worst case to save"):
        worst_sweep(sweep, hunt.cases(sweep))
