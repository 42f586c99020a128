"""A study on real storages: budget, resuming, repeats, samplers, pruners, and what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.study import optuna_views as study_plots
from orchestrator.study.storage import shown_url
from orchestrator.study.study import Study, read_tried
from orchestrator.study.tried import Tried, best, best_so_far, candidates, counted
from orchestrator.sweep.search import REDUCTION, Confirm, Goal, Search, SearchSettings
from orchestrator.sweep.space import Categorical, Dimension, Range, Space, point_key

pytest_plugins = ["tests.integration.postgresql_server"]

METHOD = Categorical("method", ("esd", "uce"))
GROUP = Categorical("group", ("x", "u"), when=(("method", ("esd",)),))
RATE = Range("rate", 1e-5, 1e-2, log=True)
STEPS = Range("steps", 25, 400, is_int=True, step=25)
WEIGHT = Range("weight", 0.0, 1.0, step=0.25)
LISTS = Categorical("layers", ([1, 2], [3], None))

SMALL = (METHOD, GROUP)
MIXED = (METHOD, GROUP, RATE, STEPS, WEIGHT)

GP = pytest.param("gp", marks=pytest.mark.slow)  # half a second a trial
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.integration)
SAMPLERS = ("tpe", GP, "cmaes", "random", "nsga2")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* experimental",
    "ignore:Constraints have been",
    "ignore:Some regimes",
    "ignore:PedAnova",
)


def importance_in(study: Study) -> dict[str, float]:
    return study_plots.importance(in_memory(study))


def plots_of(study: Study) -> dict[str, Any]:
    return study_plots.plots(in_memory(study), study.goals)


def in_memory(study: Study) -> optuna.Study:
    return study_plots.in_memory(study.tried(), study.space, study.goals)


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """A place for studies that is not there yet; of a database server an empty database."""
    if kind == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    if kind == "sqlite":
        return f"sqlite:///{folder / 'deep' / 'studies.db'}"
    return f"journal://{folder / 'deep' / 'studies.log'}"


@pytest.fixture(params=["sqlite", "journal", POSTGRESQL])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.fixture(params=["journal", POSTGRESQL])
def swift(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Without SQLite, which takes seconds for dozens of trials."""
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The fastest, for what no storage decides."""
    return url_of("journal", request, tmp_path)


def search_of(
    *dimensions: Dimension, goals: Sequence[Goal] = (Goal("y"),), **settings: Any
) -> Search:
    chosen = SearchSettings(**{"sampler": "random", "trials": 6, **settings})
    return Search(tuple(goals), (), Space(dimensions), (), chosen, Confirm(), {})


def opened(storage: str, search: Search, rungs: Sequence[int] = (), **identity: Any) -> Study:
    return Study(storage, "study", search, search.space, rungs, identity)


def value(point: Mapping[str, Any]) -> float:
    """The more, the higher the rate and the nearer the steps to 200."""
    rate = math.log10(point.get("rate", 1e-3))
    return rate - abs(point.get("steps", 200) - 200) / 400 + (point.get("method") == "esd")


def run(study: Study, count: int = 1000) -> list[Tried]:
    """Ask and tell until the study is over, or so many were told."""
    told: list[Tried] = []
    while len(told) < count and (tried := study.ask()) is not None:
        study.tell(tried.number, [value(tried.point)], {"y": value(tried.point)}, {})
        told.append(study.one(tried.number))
    return told


def abandoned(storage: str) -> optuna.Study:
    """The study as Optuna has it, to leave in it what a kill leaves."""
    from orchestrator.study.storage import open_storage

    return optuna.load_study(study_name="study", storage=open_storage(storage))


def states(study: Study) -> list[str]:
    return [tried.state for tried in study.tried()]


def test_a_trial_remembers_what_it_was_told(storage: str) -> None:
    study = opened(storage, search_of(RATE))
    tried = study.ask()
    assert tried is not None and tried.state == "running"
    assert not study.report(tried.number, 25, 0.1)
    study.tell(tried.number, [0.5], {"y": 0.5, "other": 2.0}, {"bound": -0.1})
    [found] = read_tried(storage, "study", search_of(RATE), Space((RATE,)))
    assert found.state == "done"
    assert found.point == tried.point
    assert found.values == (0.5,)
    assert found.numbers == {"y": 0.5, "other": 2.0}
    assert found.curve == {25: 0.1}
    assert found.is_feasible
    assert found.ended_ms >= found.started_ms > 0


def test_the_budget_holds_over_several_openings(storage: str) -> None:
    search = search_of(RATE, trials=7)
    assert len(run(opened(storage, search), 3)) == 3
    assert len(run(opened(storage, search), 2)) == 2
    study = opened(storage, search)
    assert len(run(study)) == 2
    assert study.is_over
    assert run(opened(storage, search)) == []
    assert len(counted(study.tried())) == 7
    longer = replace(search, settings=search.settings.model_copy(update={"trials": 9}))
    assert len(run(opened(storage, longer))) == 2


def test_an_opening_proposes_other_points_than_the_one_before(storage: str) -> None:
    search = search_of(RATE, trials=8)
    points = [point_key(t.point) for _ in range(4) for t in run(opened(storage, search), 2)]
    assert len(set(points)) == 8


def test_trials_that_were_running_go_on(storage: str) -> None:
    search = search_of(*MIXED, trials=4)
    first = opened(storage, search)
    run(first, 1)
    asked = first.ask()
    assert asked is not None
    study = opened(storage, search)
    adopted = study.adopt()
    assert [(t.number, t.point) for t in adopted] == [(asked.number, asked.point)]
    study.tell(asked.number, [0.0], {}, {})
    run(study)
    assert states(study) == ["done"] * 4


def test_a_trial_whose_settings_were_partly_chosen_keeps_them(storage: str) -> None:
    search = search_of(*MIXED, trials=3)
    opened(storage, search)
    cut_off = abandoned(storage).ask()
    method = cut_off.suggest_categorical("method", ["esd", "uce"])
    study = opened(storage, search)
    [adopted] = study.adopt()
    assert adopted.number == cut_off.number
    assert adopted.point["method"] == method
    assert set(adopted.point) >= {"method", "rate", "steps", "weight"}
    study.tell(adopted.number, [0.0], {}, {})
    run(study)
    assert states(study) == ["done"] * 3


def test_a_trial_without_any_setting_is_adopted(storage: str) -> None:
    search = search_of(*MIXED)
    opened(storage, search)
    abandoned(storage).ask()
    [adopted] = opened(storage, search).adopt()
    assert "method" in adopted.point


def test_a_trial_that_was_next_in_line_is_adopted(storage: str) -> None:
    """A grid puts its points into the queue before it takes them out."""
    search = search_of(*SMALL, sampler="grid", trials=3)
    opened(storage, search)
    abandoned(storage).enqueue_trial({"method": "uce"})
    study = opened(storage, search)
    [adopted] = study.adopt()
    assert adopted.point == {"method": "uce"}
    study.tell(adopted.number, [0.0], {}, {})
    run(study)
    assert states(study) == ["done"] * 3


def test_an_adopted_trial_that_turns_out_to_be_known_costs_nothing(storage: str) -> None:
    search = search_of(METHOD, trials=2)
    study = opened(storage, search)
    run(study, 1)
    [known] = study.tried()
    abandoned(storage).enqueue_trial({"method": known.point["method"]})
    study = opened(storage, search)
    assert study.adopt() == []
    assert study.one(1).repeat_of == 0
    assert study.one(1).values == known.values
    assert len(run(study)) == 1


def test_an_adopted_trial_may_report_its_rungs_again(storage: str) -> None:
    search = search_of(RATE, pruner="median")
    first = opened(storage, search, (25, 100))
    asked = first.ask()
    assert asked is not None
    first.report(asked.number, 25, 0.1)
    study = opened(storage, search, (25, 100))
    [adopted] = study.adopt()
    assert adopted.curve == {25: 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not study.report(adopted.number, 25, 0.1)
        study.tell(adopted.number, [1.0], {}, {"bound": 0.0})


def test_a_trial_that_was_half_told_is_told_again(storage: str) -> None:
    """The numbers and some bounds were there when the head died; the state was not."""
    search = search_of(RATE)
    first = opened(storage, search)
    asked = first.ask()
    assert asked is not None
    first._remember(asked.number, {"y": 1.0}, {"one": 0.5})
    study = opened(storage, search)
    [adopted] = study.adopt()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.tell(adopted.number, [1.0], {"y": 1.0}, {"one": 0.5, "two": -1.0})
    assert states(study) == ["done"]
    assert not study.one(adopted.number).is_feasible


def test_repeats_are_told_at_once_and_not_counted(storage: str) -> None:
    search = search_of(METHOD, Categorical("n", (1, 2, 3)), trials=6)
    study = opened(storage, search)
    told = run(study)
    assert len({point_key(t.point) for t in told}) == 6
    assert len(counted(study.tried())) == 6
    repeats = [t for t in study.tried() if t.repeat_of is not None]
    assert repeats  # by chance alone six draws of six are hardly ever all different
    for repeat in repeats:
        first = study.one(repeat.repeat_of)  # type: ignore[arg-type]
        assert (repeat.state, repeat.values) == ("done", first.values)
        assert point_key(repeat.point) == point_key(first.point)


def test_a_repeat_of_a_failed_trial_fails_too(storage: str) -> None:
    search = search_of(METHOD, trials=2)
    study = opened(storage, search)
    while (tried := study.ask()) is not None:
        study.tell_failed(tried.number, "out of memory")
    assert len(counted(study.tried())) == 2
    assert {t.state for t in study.tried()} == {"failed"}
    assert {t.reason for t in counted(study.tried())} == {"out of memory"}
    assert candidates(study.tried()) == []


@pytest.mark.parametrize("sampler", [*SAMPLERS, "grid"])
def test_an_exhausted_space_ends_the_study(swift: str, sampler: str) -> None:
    search = search_of(METHOD, GROUP, LISTS, sampler=sampler, trials=50)
    study = opened(swift, search)
    points = [point_key(t.point) for t in run(study)]
    assert len(points) == len(set(points)) == search.space.size == 9
    assert study.is_over
    assert run(opened(swift, search)) == []


def test_points_that_are_asked_for_and_not_told_are_not_asked_for_again(storage: str) -> None:
    study = opened(storage, search_of(METHOD, GROUP, trials=50))
    asked = [study.ask() for _ in range(4)]
    assert asked[3] is None
    assert len({point_key(t.point) for t in asked if t is not None}) == 3


def test_the_last_points_of_a_large_grid_are_found(journal: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("orchestrator.study.study.MAX_DRAWS", 2)
    monkeypatch.setattr("orchestrator.study.study.MAX_REPEATS", 1)
    search = search_of(Range("n", 1, 30, is_int=True, log=True), trials=30)
    assert {t.point["n"] for t in run(opened(journal, search))} == set(range(1, 31))


def test_a_space_of_one_point_is_one_trial(storage: str) -> None:
    space = Space((GROUP,)).within({"method": "uce"})
    search = search_of()
    study = Study(storage, "study", search, space)
    [told] = run(study)
    assert told.point == {"method": "uce"}
    assert importance_in(study) == {}
    assert plots_of(study) == {}


def test_a_grid_visits_every_point_once_in_its_order(storage: str) -> None:
    search = search_of(METHOD, GROUP, LISTS, sampler="grid", trials=50)
    expected = [point_key(point) for point in search.space.points()]
    told = run(opened(storage, search), 4) + run(opened(storage, search))
    assert [point_key(t.point) for t in told] == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pruner", ["none", "hyperband"])
def test_every_sampler_proposes_points_of_the_space(
    journal: str, sampler: str, pruner: str
) -> None:
    search = search_of(*MIXED, LISTS, sampler=sampler, pruner=pruner, trials=18)
    study = opened(journal, search, (50, 150, 400))
    told = run(study)
    assert len(told) == 18
    for point in (t.point for t in told):
        assert ("group" in point) == (point["method"] == "esd")
        for dimension in study.space.dimensions:
            if dimension.name in point:
                assert is_value(point[dimension.name], dimension)


def is_value(got: Any, dimension: Dimension) -> bool:
    if isinstance(dimension, Categorical):
        return got in dimension.values
    return dimension.low <= got <= dimension.high and dimension.snap(got) == got


@pytest.mark.parametrize("sampler", ["tpe", GP, "cmaes"])
def test_samplers_learn(journal: str, sampler: str) -> None:
    rate = Range("rate", 1e-5, 1e-2, log=True, digits=6)
    study = opened(journal, search_of(rate, sampler=sampler, trials=24))
    while (tried := study.ask()) is not None:
        study.tell(tried.number, [-((math.log10(tried.point["rate"]) + 3) ** 2)], {}, {})
    late = [t.values[0] for t in study.tried()[14:]]
    by_chance = -(1 + 2**3) / 9  # the mean of a parabola from -2 to 1
    assert sum(late) / len(late) > by_chance / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_live_with_bounds_repeats_and_failures(swift: str, sampler: str) -> None:
    """The number of bounds must be the same for every trial that has a value."""
    search = search_of(METHOD, STEPS, sampler=sampler, trials=16)
    study = opened(swift, search)
    for number in range(16):
        tried = study.ask()
        assert tried is not None
        if number % 5 == 3:
            study.tell_failed(tried.number, "told to fail")
        else:
            broken = {"a": tried.point["steps"] / 100 - 2, "b": -1.0}
            study.tell(tried.number, [value(tried.point)], {}, broken)
    assert study.ask() is None
    found = candidates(study.tried())
    assert found and all(t.point["steps"] <= 200 for t in found)
    done = [t for t in abandoned(swift).trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert {tuple(t.constraints) for t in done} == {("a", "b")}


def test_a_broken_bound_makes_a_trial_infeasible(storage: str) -> None:
    study = opened(storage, search_of(RATE, trials=3))
    for violation, y in ((0.2, 9.0), (0.0, 1.0), (-0.3, 2.0)):
        tried = study.ask()
        assert tried is not None
        study.tell(tried.number, [y], {}, {"bound": violation, "other": -1.0})
    assert [t.is_feasible for t in study.tried()] == [False, True, True]
    assert [t.values[0] for t in best(study.tried(), study.goals, 5)] == [2.0, 1.0]
    assert best_so_far(study.tried(), study.goals) == [None, 1.0, 2.0]


def test_less_may_be_sought(storage: str) -> None:
    goals = (Goal("y", maximize=False),)
    study = opened(storage, search_of(RATE, goals=goals, trials=4))
    for y in (3.0, 1.0, 2.0, 4.0):
        tried = study.ask()
        assert tried is not None
        study.tell(tried.number, [y], {}, {})
    assert [t.values[0] for t in best(study.tried(), goals, 2)] == [1.0, 2.0]
    assert best_so_far(study.tried(), goals) == [3.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("sampler", ["tpe", GP, "random", "nsga2", "grid"])
def test_several_goals_have_a_pareto_front(swift: str, sampler: str) -> None:
    goals = (Goal("a"), Goal("steps", maximize=False))
    search = search_of(METHOD, STEPS, goals=goals, sampler=sampler, trials=16)
    study = opened(swift, search)
    while (tried := study.ask()) is not None:
        steps = float(tried.point["steps"])
        study.tell(tried.number, [min(steps, 200.0), steps], {}, {"bound": -1.0})
    front = best(study.tried(), goals, 100)
    done = candidates(study.tried())
    assert {t.number for t in front} == {
        t.number
        for t in done
        if not any(
            o.values[0] >= t.values[0] and o.values[1] <= t.values[1] and o.values != t.values
            for o in done
        )
    }
    assert [t.values[0] for t in front] == sorted((t.values[0] for t in front), reverse=True)
    assert all(t.values[1] <= 200 for t in front[1:])


def curves(study: Study, rungs: Sequence[int], top: Callable[[Tried], float]) -> None:
    """Every trial passes its rungs with a share of its top."""
    while (tried := study.ask()) is not None:
        for rung in rungs[:-1]:
            if study.report(tried.number, rung, top(tried) * rung / rungs[-1]):
                study.tell_pruned(tried.number, {"y": 0.0}, {"bound": -1.0})
                break
        else:
            study.tell(tried.number, [top(tried)], {"y": top(tried)}, {"bound": -1.0})


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_hopeless_trials_are_pruned(swift: str, pruner: str) -> None:
    rungs = (50, 125, 400)
    study = opened(swift, search_of(RATE, pruner=pruner, trials=30), rungs)
    curves(study, rungs, lambda tried: tried.point["rate"])
    pruned = [t for t in study.tried() if t.state == "pruned"]
    assert 3 <= len(pruned) <= 25
    assert all(t.curve and t.numbers == {"y": 0.0} for t in pruned)
    done = [t.point["rate"] for t in candidates(study.tried())]
    mean = sum(done) / len(done)
    assert mean > sum(t.point["rate"] for t in pruned) / len(pruned)
    assert max(t.point["rate"] for t in study.tried()) in done
    assert len(counted(study.tried())) == 30


@pytest.mark.parametrize("rungs", [(50, 125, 400), (50, 150, 400), (25, 75, 225), (75, 200)])
def test_hyperband_decides_at_every_rung(journal: str, rungs: tuple[int, ...]) -> None:
    """A rung that is measured and then ignored would cost for nothing."""
    study = opened(journal, search_of(RATE, pruner="hyperband", trials=50), rungs)
    curves(study, rungs, lambda tried: tried.point["rate"])
    stops = {max(t.curve) for t in study.tried() if t.state == "pruned"}
    assert stops == set(rungs[:-1])


def test_nothing_is_pruned_where_there_is_one_rung(journal: str) -> None:
    for rungs in ((), (100,)):
        study = opened(journal, search_of(RATE, pruner="hyperband"), rungs)
        assert isinstance(study._study.pruner, optuna.pruners.NopPruner)
    assert REDUCTION == 3


def test_the_first_goals_settings_are_ranked(journal: str) -> None:
    other = Range("other", 0.0, 1.0)
    study = opened(journal, search_of(RATE, other, trials=40))
    run(study)
    found = importance_in(study)
    assert set(found) == {"rate", "other"}
    assert found["rate"] > found["other"]


def test_nothing_is_ranked_or_drawn_of_too_few_trials(journal: str) -> None:
    study = opened(journal, search_of(*MIXED))
    for _ in range(2):
        assert importance_in(study) == {}
        assert plots_of(study) == {}
        run(study, 1)
    assert set(importance_in(study)) <= {d.name for d in MIXED}


@pytest.mark.parametrize("dimensions", [(RATE,), SMALL, MIXED, (*MIXED, LISTS)])
def test_plots_are_drawn_whatever_the_space(journal: str, dimensions: Any) -> None:
    study = opened(journal, search_of(*dimensions, trials=12))
    run(study)
    assert {"history", "slice"} <= set(plots_of(study))


def test_the_front_of_several_goals_is_drawn(journal: str) -> None:
    goals = (Goal("a"), Goal("b", maximize=False))
    study = opened(journal, search_of(RATE, STEPS, goals=goals, trials=12))
    while (tried := study.ask()) is not None:
        study.tell(tried.number, [tried.point["rate"], tried.point["steps"]], {}, {})
    assert "pareto_front" in plots_of(study)


@pytest.mark.parametrize("maximize", [True, False])
def test_the_first_of_several_goals_ranks_the_settings(journal: str, maximize: bool) -> None:
    """What decides on its better end counts, not what decides on its worse end."""
    high, low = Range("high", 0.0, 1.0, digits=6), Range("low", 0.0, 1.0, digits=6)
    goals = (Goal("a", maximize), Goal("b"))
    study = opened(journal, search_of(high, low, goals=goals, trials=60))
    while (tried := study.ask()) is not None:
        point = tried.point
        value = point["high"] if point["high"] > 0.8 else -point["low"]
        study.tell(tried.number, [value, 0.0], {}, {})
    ranks = importance_in(study)
    assert (ranks["high"] > ranks["low"]) == maximize


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": Space((METHOD,))}, r"space\.steps was {.*} and is null"),
        (
            {"space": Space((METHOD, replace(STEPS, high=500)))},
            r"space\.steps\.int was \[25,400\] and is \[25,500\]",
        ),
        ({"goals": (Goal("z"),)}, r'goals was \[\["y",true\]\] and is \[\["z",true\]\]'),
        ({"goals": (Goal("y", False),)}, r"goals was .* and is \[\[\"y\",false\]\]"),
        ({"goals": (Goal("y"), Goal("z"))}, r"goals was"),
        ({"identity": {"sweep": {"seeds": [0, 1]}}}, r"sweep\.seeds was \[0\] and is \[0,1\]"),
    ],
)
def test_a_changed_search_is_refused_with_what_changed_and_the_way_forward(
    storage: str, changed: dict[str, Any], said: str
) -> None:
    search = search_of(METHOD, STEPS)
    run(opened(storage, search, sweep={"seeds": [0]}), 2)
    identity = changed.get("identity", {"sweep": {"seeds": [0]}})
    other = replace(search, **{k: v for k, v in changed.items() if k != "identity"})
    for again in (
        lambda: Study(storage, "study", other, other.space, (), identity),
        lambda: read_tried(storage, "study", other, other.space, identity),
    ):
        with pytest.raises(ResurgeError, match=said) as caught:
            again()
        assert "another sweep" in str(caught.value)
        assert "another `name`" in str(caught.value)
        assert "put the old values back" in str(caught.value)
    assert len(opened(storage, search, sweep={"seeds": [0]}).tried()) == 2


def test_a_change_inside_a_list_is_named_without_the_rest(storage: str) -> None:
    search = search_of(RATE)
    edits = [{"unlearn": ["esd", {"uce": {"lam": 0.1}}]}, {"finetune": {"batch_size": [16]}}]
    run(opened(storage, search, edits=edits), 1)
    edits[1] = {"finetune": {"batch_size": [8]}}
    with pytest.raises(ResurgeError) as caught:
        opened(storage, search, edits=edits)
    assert "edits[1].finetune.batch_size was [16] and is [8]" in str(caught.value)
    assert "lam" not in str(caught.value)


def test_sampler_pruner_and_budget_may_change(storage: str) -> None:
    run(opened(storage, search_of(RATE)), 2)
    changed = search_of(RATE, sampler="tpe", pruner="median", trials=4)
    assert len(run(opened(storage, changed, (10, 20)))) == 2


def test_nothing_is_read_and_nothing_written_where_no_study_is(
    storage: str, tmp_path: Path
) -> None:
    assert read_tried(storage, "study", search_of(RATE), Space((RATE,))) == []
    assert list(tmp_path.iterdir()) == []
    run(opened(storage, search_of(RATE)), 1)
    assert read_tried(storage, "other", search_of(RATE), Space((RATE,))) == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ann:s3cret@127.0.0.1:1/studies",
        "postgresql+psycopg://127.0.0.1:1/studies?user=ann&password=s3cret",
        "mysql+nodriver://ann:s3cret@127.0.0.1:1/studies",
        "nonsense://ann:s3cret@127.0.0.1:1/studies",
        "ann:s3cret@127.0.0.1/studies",
        "postgresql://ann:s3cret@127.0.0.1:port/studies",
        "journal://studies.log",
        "studies.db",
    ],
)
def test_storage_that_cannot_be_used_gives_one_clear_error_without_a_password(url: str) -> None:
    for use in (
        lambda: opened(url, search_of(RATE)),
        lambda: read_tried(url, "study", search_of(RATE), Space((RATE,))),
    ):
        with pytest.raises(ResurgeError) as caught:
            use()
        said = str(caught.value)
        assert "studies" in said
        assert "s3cret" not in said
        assert "\n" not in said


def test_a_file_that_is_no_database_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("not a database, and longer than a header of one " * 9)
    with pytest.raises(ResurgeError, match=r"studies\.db cannot be used: .*not a database"):
        opened(f"sqlite:///{tmp_path / 'studies.db'}", search_of(RATE))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:pw@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("postgresql://ann:p@w@host/db", "postgresql://ann:***@host/db"),
        (
            "postgresql://host/db?user=a&password=pw&x=1",
            "postgresql://host/db?user=a&password=***&x=1",
        ),
        ("postgresql://postgres:postgres@host/postgres", "postgresql://postgres:***@host/postgres"),
        ("sqlite:////home/a:b@c/studies.db", "sqlite:////home/a:b@c/studies.db"),
        ("journal:///a@b", "journal:///a@b"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown
