import io

import pytest
from rich.console import Console

from orchestrator.cli.show.times import render
from orchestrator.core.errors import ResurgeError
from orchestrator.results.times import times_to_resurgence
from orchestrator.stats.kaplan_meier import Time, kaplan_meier
from orchestrator.stats.paired import wilson
from orchestrator.store.store import Store
from tests.orchestrator import synthetic

BACK = {"unlearn.method": "esd", "finetune.dataset": "related", "finetune.learning_rate": 1e-3}


@pytest.fixture(scope="module")
def plan():
    return synthetic.make_plan(seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def store(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    synthetic.commit(store, plan)
    return store


def setting_of(times, **params):
    (found,) = [s for s in times.settings if all(s.params[k] == v for k, v in params.items())]
    return found


def test_kaplan_meier_by_hand():
    """Five seeds: back by 50, by 100 and by 100, and two that never were, one looked at until 50.

    After 50: 4/5. At 100 three are at risk and two come back: 4/5 · 1/3.
    """
    times = [Time(50, True), Time(50, False), Time(100, True), Time(100, True), Time(100, False)]
    first, second = kaplan_meier(times)
    assert (first.at_risk, first.events, first.share) == (5, 1, pytest.approx(4 / 5))
    assert (second.at_risk, second.events, second.share) == (3, 2, pytest.approx(4 / 15))


def test_kaplan_meier_agrees_with_published_values():
    """Freireich et al. (1963), 6-MP: weeks in remission of 21 patients.

    Shares and intervals (Greenwood, log-log) as in Kalbfleisch and Prentice's and R's tables.
    """
    relapsed = (6, 6, 6, 7, 10, 13, 16, 22, 23)
    censored = (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35)
    curve = kaplan_meier([*(Time(w, True) for w in relapsed), *(Time(w, False) for w in censored)])
    found = {p.steps: (p.share, p.low, p.high) for p in curve}
    assert found[6] == pytest.approx((0.857, 0.620, 0.952), abs=5e-4)
    assert found[13] == pytest.approx((0.690, 0.432, 0.849), abs=5e-4)
    assert found[23] == pytest.approx((0.448, 0.188, 0.680), abs=5e-4)
    assert found[35] == found[23], "censoring alone changes nothing"


def test_all_or_none_have_an_interval_with_width():
    (none,) = kaplan_meier([Time(100, False)] * 3)
    assert (none.share, none.low, none.high) == (1, *wilson(3, 3))
    (everyone,) = kaplan_meier([Time(50, True)] * 3)
    assert (everyone.share, everyone.low, everyone.high) == (0, *wilson(0, 3))


def test_the_concept_is_back_halfway_to_the_base(plan, store):
    times = times_to_resurgence(plan, store)
    assert len(times.settings) == 8
    assert "finetune.steps" not in times.axes
    setting = setting_of(times, **BACK)
    assert setting == times.settings[0], "the fastest is first"
    assert all(time.happened for time in setting.times)
    assert {(time.after, time.steps) for time in setting.times} <= {(0, 50), (50, 100)}
    assert setting.median in (50, 100)


def test_what_does_not_come_back_is_censored_at_the_last_step_count(plan, store):
    slow = setting_of(times_to_resurgence(plan, store), **BACK | {"unlearn.method": "uce"})
    assert slow.times == (Time(100, False),) * 3
    assert slow.median is None
    assert str(slow.times[0]) == ">100"


def test_an_absolute_threshold(plan, store):
    low = setting_of(times_to_resurgence(plan, store, threshold=0.3), **BACK)
    assert {time.steps for time in low.times} == {50}
    never = setting_of(times_to_resurgence(plan, store, threshold=0.99), **BACK)
    assert not any(time.happened for time in never.times)


def test_what_was_never_gone_is_left_out(plan, store):
    times = times_to_resurgence(plan, store, threshold=0.0)
    assert {(s.times, s.never_gone) for s in times.settings} == {((), 3)}


def test_a_missing_score_hides_what_came_after_it(plan, tmp_path):
    """100 steps are scored and 50 are not: the concept may have been back by 50 or not."""
    store = Store(tmp_path)
    hidden = {
        stage.digest
        for trial in plan.trials
        if trial.steps == 50
        for stage in (*trial.final.scores, trial.final.sample)
    }
    synthetic.commit(store, plan, {s.digest for s in plan.stages} - hidden)
    times = times_to_resurgence(plan, store)
    assert all(setting.times == () for setting in times.settings)
    assert "to come" in printed(times)


def test_one_step_count_has_no_time(tmp_path):
    plan = synthetic.make_plan(steps=(0, 50))
    with pytest.raises(ResurgeError, match=r"two step counts .* has 1; give .*steps"):
        times_to_resurgence(plan, Store(tmp_path))


def printed(times) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    render(times, console)
    return console.export_text()


def test_the_table_says_what_back_means(plan, store):
    text = printed(times_to_resurgence(plan, store))
    assert "3 of 3" in text
    assert ">100" in text
    assert "halfway from the unlearned score to the base's" in text
    assert "censored" in text
    assert "at or above 0.3" in printed(times_to_resurgence(plan, store, 0.3))
