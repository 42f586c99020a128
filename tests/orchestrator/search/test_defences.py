"""Min-max on the real stack: the unlearner's settings whose worst case is the least bad."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.show.worst_cases import show_best_defences
from orchestrator.core.errors import ResurgeError, SweepError
from orchestrator.home import Home
from orchestrator.plan.plan import make_plan
from orchestrator.results.measure import TrialReader
from orchestrator.search.search import run_search
from orchestrator.study.defence import are_all_tried, best_defences, read_outer, value_of
from orchestrator.study.points import PointPlanner
from orchestrator.study.stored_points import StoredPoints, keep
from orchestrator.study.studies import is_complete, read_studies
from orchestrator.study.tried import counted
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.search_runs import StudyView
from tests.orchestrator.search.test_searcher import HUNT, Heard, Hunt, stopping_after, sweep_of

pytestmark = [
    pytest.mark.usefixtures("calls"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* experimental"),
]
AMOUNTS = (0.0, 0.01, 0.02)
DEFEND = "search.defend={space: {unlearn.dim.amount: [0.0, 0.01, 0.02]}, sampler: grid}"


@pytest.fixture
def hunt(tmp_path: Path) -> Hunt:
    return Hunt(tmp_path)


def is_over(hunt: Hunt, sweep: Sweep) -> bool:
    points = PointPlanner(sweep)
    studies = read_studies(points, hunt.storage)
    return are_all_tried(points, hunt.storage) and is_complete(points, studies, hunt.store)


def enumerated(hunt: Hunt) -> dict[float, float]:
    """The worst case of each defence that works, out of an ordinary sweep of all settings."""
    text = HUNT[: HUNT.index("search:")]
    overrides = [f"unlearn.dim.amount={list(AMOUNTS)}", "finetune.steps=[1, 2, 3]"]
    sweep = parse(text, None, overrides)
    assert hunt.sweep(sweep).ok
    found: dict[float, float] = {}
    for measured in TrialReader(make_plan(sweep), hunt.store).all():
        amount = float(str(measured.planned.trial.params.get("unlearn.dim.amount", 0.0)))
        if measured.planned.is_control or measured.unlearning_failed or measured.model_ruined:
            continue
        assert measured.paired is not None
        found[amount] = max(found.get(amount, -1.0), measured.paired.resurgence.value)
    return found


def test_the_best_defence_is_what_enumeration_gives(hunt: Hunt) -> None:
    sweep = sweep_of(DEFEND)
    hunt.run(sweep)
    cases = hunt.cases(sweep)
    assert {case.fixed["unlearn.dim.amount"] for case in cases} == set(AMOUNTS)
    assert is_over(hunt, sweep)
    [best] = best_defences(PointPlanner(sweep).search, cases)
    worst = enumerated(hunt)
    assert 0.0 not in worst  # there nothing was unlearned
    assert best.fixed["unlearn.dim.amount"] == min(worst, key=lambda amount: worst[amount])
    assert value_of(best) == pytest.approx(min(worst.values()))
    page = io.StringIO()
    show_best_defences(PointPlanner(sweep).search, cases, Console(file=page, width=200))
    assert "all: the best of 3 defences is " in page.getvalue()


def test_what_is_no_defence_costs_no_whole_search(hunt: Hunt) -> None:
    sweep = sweep_of(DEFEND)
    hunt.run(sweep, parallel=1)
    by_amount = {c.fixed["unlearn.dim.amount"]: c for c in hunt.cases(sweep)}
    assert len(by_amount[0.01].measured) == 3
    assert len(by_amount[0.0].measured) < 3
    assert by_amount[0.0].to_come == 0
    outer = counted(read_outer(PointPlanner(sweep), hunt.storage, {}))
    assert [t.is_feasible for t in outer] == [t.point["unlearn.dim.amount"] > 0 for t in outer]
    again = hunt.run(sweep)
    assert again.ran() == [] and again.told_trials == []


def test_a_bound_on_the_unlearning_decides_what_is_a_defence(hunt: Hunt) -> None:
    bounds = "subject_to: {unlearned.erased: '<= 1% of base'}"
    sweep = sweep_of(DEFEND.replace("sampler: grid", f"sampler: grid, {bounds}"))
    hunt.run(sweep)
    for tried in counted(read_outer(PointPlanner(sweep), hunt.storage, {})):
        share = tried.numbers["unlearned.erased"] / tried.numbers["base.erased"]
        assert tried.is_feasible == (share <= 0.01)


def test_a_search_of_defences_that_was_stopped_goes_on(hunt: Hunt) -> None:
    sweep = sweep_of(DEFEND, "search.confirm.top=1", "search.confirm.seeds=2")
    stops = 0
    while True:
        try:
            hunt.run(sweep, heard=Heard(stop=stopping_after(6)))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 1
    assert is_over(hunt, sweep)
    cases = hunt.cases(sweep)
    assert len(cases) == 3 and not any(case.count("running") for case in cases)
    confirmed = {case.fixed["unlearn.dim.amount"]: bool(case.confirmed) for case in cases}
    assert not confirmed[0.0] and confirmed[0.01]
    # Read back without planning, and shown.
    points = PointPlanner(sweep)
    studies = read_studies(points, hunt.storage)
    stored = StoredPoints(*keep(points, studies))
    assert read_studies(stored, hunt.storage) == studies
    view = StudyView(points, hunt.storage, hunt.store)
    runs = list(view.runs())
    assert sum(run.kind == "study" for run in runs) == 3
    assert all(view.holds(run.key) for run in runs)


def test_the_whole_command_searches_for_a_defence_once(tmp_path: Path) -> None:
    sweep = sweep_of(DEFEND, "search.space.finetune.steps=[2]")
    console = Console(file=io.StringIO(), width=200)
    first = run_search(sweep, Home(tmp_path), console)
    assert len(first) == 3
    again = run_search(sweep, Home(tmp_path), console)
    assert [case.trials for case in again] == [case.trials for case in first]


def test_another_inner_search_is_refused(hunt: Hunt) -> None:
    hunt.run(sweep_of(DEFEND))
    with pytest.raises(ResurgeError, match=r"inner\.trials was 10 and is 2"):
        hunt.run(sweep_of(DEFEND, "search.trials=2"))


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("search.defend={space: {finetune.batch_size: [1, 2]}}", "is no setting of an unlearner"),
        ("search.defend={space: {finetune.steps: [1, 2]}}", "is searched, aggregated or held"),
        ("search.defend={sampler: grid}", "missing key 'space'"),
        (DEFEND.replace("grid", "grit"), "must be one of"),
        (DEFEND.replace("[0.0, 0.01, 0.02]", "{float: [0, 1]}"), "'grid' needs lists"),
    ],
)
def test_what_makes_no_sense_is_refused(override: str, why: str) -> None:
    with pytest.raises(SweepError, match=why):
        sweep_of(override)
