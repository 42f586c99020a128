import io

import pytest
from rich.console import Console

from orchestrator.cli.show.times import render
from orchestrator.core.errors import ResurgeError
from orchestrator.results.times import times_to_resurgence
from orchestrator.stats.kaplan_meier import Time
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
