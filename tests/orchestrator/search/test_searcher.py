"""A search on the real stack, at its smallest: what is shared, what is resumed, what it costs."""

from __future__ import annotations

import io
import math
import queue
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.show.worst_cases import show_worst_cases
from orchestrator.core.errors import ResurgeError, SweepError
from orchestrator.core.stage import Stage
from orchestrator.executors.base import Executor, ExecutorSettings, FreeWorker, Workers
from orchestrator.executors.inline import Inline
from orchestrator.home import Home
from orchestrator.messages import Event, StageCommitted, StageFailed, TaskEnded, WorkOrder
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.job import Job, open_job, open_results
from orchestrator.run.run import view_of
from orchestrator.schedule.scheduler import Outcome, Scheduler
from orchestrator.search.searcher import Searcher
from orchestrator.store.store import Store
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import is_complete, read_studies
from orchestrator.study.study import Study
from orchestrator.study.tried import Tried, counted
from orchestrator.study.worst_case import WorstCase, asked_plan, confirmed, worst_cases
from orchestrator.sweep.space import point_key
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse
from orchestrator.upkeep.inventory import Inventory

Calls = Callable[[], list[str]]
pytestmark = [
    pytest.mark.usefixtures("calls"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* experimental"),
]

HUNT = """
name: hunt
base: tiny
concept: star
edits:
  - unlearn: dim
  - finetune: {dataset: dots, batch_size: 2, learning_rate: 3.0e-2}
evaluate: {metrics: [glow], images_per_prompt: 1, retain: []}
search:
  maximize: resurgence
  space:
    finetune.steps: [1, 2, 3]
  sampler: grid
  trials: 10
  confirm: {top: 0}
resources: {executor: inline}
"""

RESURGE = str(Path(sys.executable).parent / "resurge")
RATES = "search.space.finetune.learning_rate=[1e-2, 3e-2]"


@dataclass
class Heard:
    """What a search tells of itself; `stop` may end it."""

    told_trials: list[Tried] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    confirmed: int = 0
    stop: Callable[[Heard], None] = lambda heard: None

    def begin(self, study: str, trials: list[Tried]) -> None:
        pass

    def told(self, study: str, trial: Tried) -> None:
        self.told_trials.append(trial)

    def confirming(self, settings: int) -> None:
        self.confirmed = settings

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.stop(self)

    def ran(self) -> list[str]:
        return [e.key for e in self.events if isinstance(e, StageCommitted) and e.ran]


class Hunt:
    """A search in a folder that may be begun again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "store")
        self.storage = f"sqlite:///{root / 'studies.db'}"

    def run(
        self,
        sweep: Sweep,
        parallel: int = 2,
        heard: Heard | None = None,
        workers: type[Executor] = Inline,
    ) -> Heard:
        """Search to the end, or until `heard` stops it."""
        heard = heard or Heard()
        with workers(ExecutorSettings()) as executor:
            logs = self.root / "logs"
            scheduler = Scheduler((), self.store.keys(), executor, self.store, logs, heard)
            Searcher(PointPlanner(sweep), self.storage, scheduler, parallel, heard).run()
        return heard

    def sweep(self, sweep: Sweep) -> Outcome:
        """Run an ordinary sweep in the same store."""
        plan, done = make_plan(sweep), self.store.keys()
        with Inline(ExecutorSettings()) as executor:
            tasks = make_tasks(plan, done, sweep.keep)
            return Scheduler(tasks, done, executor, self.store, self.root / "logs").run()

    def tried(self, sweep: Sweep) -> list[Tried]:
        """The trials of every study."""
        return [t for _, _, tried in read_studies(PointPlanner(sweep), self.storage) for t in tried]

    def stages(self, sweep: Sweep) -> tuple[Stage, ...]:
        """All that the search has asked for."""
        points = PointPlanner(sweep)
        return asked_plan(points, read_studies(points, self.storage)).stages

    def cases(self, sweep: Sweep) -> list[WorstCase]:
        points = PointPlanner(sweep)
        return worst_cases(points, read_studies(points, self.storage), self.store)

    def training_states(self) -> list[str]:
        folder = self.root / "store" / "checkpoints"
        return [str(path) for path in folder.rglob("*") if path.is_file()]


def table_of(hunt: Hunt, sweep: Sweep) -> str:
    """What the command line prints in the end."""
    page = io.StringIO()
    show_worst_cases(hunt.cases(sweep), Console(file=page, width=200))
    return page.getvalue()


@pytest.fixture
def hunt(tmp_path: Path) -> Hunt:
    return Hunt(tmp_path)


@pytest.fixture
def steps_trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Optimiser steps, as they are made."""
    from workers.training.finetune import Trainer

    made: list[int] = []
    backward = Trainer._backward

    def counting(self: Trainer, step: int) -> object:
        made.append(step)
        return backward(self, step)

    monkeypatch.setattr(Trainer, "_backward", counting)
    yield made


def sweep_of(*overrides: str) -> Sweep:
    return parse(HUNT, None, overrides)


def test_the_values_are_those_of_a_sweep(hunt: Hunt) -> None:
    """Told are the means over the seeds of what the store has of a point."""
    sweep = sweep_of("seeds=2", "search.space.finetune.steps=[2]")
    hunt.run(sweep)
    [tried] = hunt.tried(sweep)
    points = PointPlanner(sweep)
    plan = points.plan(points.trials(tried.point))
    numbers = points.numbers(plan, hunt.store, tried.point)
    assert tried.values == (numbers.found["resurgence"],)
    assert tried.numbers == numbers.found
    assert len(plan.trials) == 2
    finals = [hunt.store.get(t.final.scores[0]).metrics["erased"] for t in plan.trials]  # type: ignore[union-attr]
    assert finals[0] != finals[1]
    assert tried.numbers["erased_accuracy"] == pytest.approx(sum(finals) / 2)
    # The primary metric's own name means its mean over the erased concept.
    assert tried.numbers["glow"] == tried.numbers["erased_accuracy"]
    assert tried.is_feasible


def test_what_trials_and_studies_share_runs_once(hunt: Hunt, calls: Calls) -> None:
    sweep = sweep_of(
        "unlearn=[dim, nudge]",
        "search.for_each=unlearn.method",
        "search.space.finetune.steps=[1, 2]",
        "seeds=2",
    )
    heard = hunt.run(sweep)
    assert max(Counter(heard.ran()).values()) == 1
    assert set(heard.ran()) == {stage.key for stage in hunt.stages(sweep)}
    noted = calls()
    assert noted.count("dim") == 1  # one unlearned model for all trials and both seeds
    assert noted.count("unlearn 0.01") == 1
    assert noted.count("dots 128") == 1
    names = [name for name, _, _ in read_studies(PointPlanner(sweep), hunt.storage)]
    assert names == ["hunt/dim", "hunt/nudge"]
    assert len(counted(hunt.tried(sweep))) == 4
    # `nudge` takes next to nothing away: nothing of it can have come back.
    assert [t.is_feasible for t in hunt.tried(sweep)] == [True] * 2 + [False] * 2


def test_a_second_run_does_nothing(hunt: Hunt, calls: Calls) -> None:
    sweep = sweep_of("search.confirm.top=1", "search.confirm.seeds=2")
    hunt.run(sweep)
    before = hunt.tried(sweep)
    calls()
    heard = hunt.run(sweep)
    assert heard.ran() == [] and heard.told_trials == []
    assert calls() == []
    assert hunt.tried(sweep) == before


def test_what_a_sweep_measured_costs_nothing(hunt: Hunt, calls: Calls) -> None:
    text = HUNT[: HUNT.index("search:")]
    assert hunt.sweep(parse(text, None, ["finetune.steps=[1, 2, 3]"])).ok
    calls()
    sweep = sweep_of()
    heard = hunt.run(sweep)
    assert heard.ran() == []
    assert calls() == []
    assert [t.state for t in hunt.tried(sweep)] == ["done"] * 3


def test_a_failing_stage_fails_its_trials_with_the_reason_and_the_search_goes_on(
    hunt: Hunt,
) -> None:
    sweep = sweep_of("search.space.unlearn.dim.fail=[true, false]")
    heard = hunt.run(sweep)
    tried = hunt.tried(sweep)
    assert Counter(t.state for t in tried) == {"failed": 3, "done": 3}
    for trial in tried:
        assert (trial.state == "failed") == trial.point["unlearn.dim.fail"]
        if trial.state == "failed":
            assert trial.reason and "told to fail" in trial.reason and "(log: " in trial.reason
    # The broken stage was tried once, and is tried again by the next attempt only if need be.
    assert sum(isinstance(event, StageFailed) for event in heard.events) == 1
    again = hunt.run(sweep)
    assert again.events == [] and again.told_trials == []


def test_no_budget_is_spent_on_a_study_none_of_whose_points_can_be_measured(hunt: Hunt) -> None:
    sweep = sweep_of("unlearn=[{nudge: {fail: true}}, dim]", "search.for_each=unlearn.method")
    for _ in range(2):
        heard = hunt.run(sweep)
        assert [e.failure.message for e in heard.events if isinstance(e, StageFailed)]
    broken, whole = (trials for _, _, trials in read_studies(PointPlanner(sweep), hunt.storage))
    assert {t.state for t in broken} == {"running"}
    assert [t.state for t in whole] == ["done"] * 3
    assert "hunt/nudge: 3 of 3 trials to come" in table_of(hunt, sweep)


def test_more_steps_of_the_same_settings_go_on_with_the_trajectory(
    hunt: Hunt, steps_trained: list[int]
) -> None:
    sweep = sweep_of(RATES, "search.space.finetune.steps=[1, 3]")
    assert [d.name for d in PointPlanner(sweep).search.space.dimensions] == [
        "finetune.steps",
        "finetune.learning_rate",
    ]
    hunt.run(sweep, parallel=1)  # 1 step of either rate, then 3 of either
    assert steps_trained == [0, 0, 1, 2, 1, 2]
    assert hunt.training_states() == []


def test_without_training_states_more_steps_begin_anew(
    hunt: Hunt, steps_trained: list[int]
) -> None:
    sweep = sweep_of(RATES, "search.space.finetune.steps=[1, 3]", "search.checkpoints=0")
    hunt.run(sweep, parallel=1)
    assert len(steps_trained) == 1 + 1 + 3 + 3


def test_training_states_stay_where_the_sweep_says_so(hunt: Hunt) -> None:
    hunt.run(sweep_of("keep=[checkpoints]"))
    assert hunt.training_states()


def test_a_pruned_trial_keeps_its_curve_and_costs_no_more(
    hunt: Hunt, steps_trained: list[int]
) -> None:
    sweep = sweep_of(
        "search.space.finetune.learning_rate=[3e-2, 1e-6, 2e-6, 3e-6]",
        "search.space.finetune.steps={int: [1, 3], step: 2}",
        "search.pruner=hyperband",
    )
    assert PointPlanner(sweep).ladder == (1, 3)
    hunt.run(sweep, parallel=1)
    tried = hunt.tried(sweep)
    assert len(counted(tried)) == 8
    pruned = [t for t in tried if t.state == "pruned"]
    assert pruned
    for trial in pruned:
        assert trial.point["finetune.steps"] == 3
        assert list(trial.curve) == [1]
        assert trial.numbers["resurgence"] == trial.curve[1]
    done = [t for t in tried if t.state == "done"]
    assert all(list(t.curve) == [1] for t in done if t.point["finetune.steps"] == 3)
    longest: dict[float, int] = {}
    for trial in tried:
        rate, steps = trial.point["finetune.learning_rate"], trial.point["finetune.steps"]
        reached = 1 if trial.state == "pruned" else steps
        longest[rate] = max(longest.get(rate, 0), reached)
    assert len(steps_trained) == sum(longest.values())


def test_rungs_are_of_one_trajectory(hunt: Hunt, steps_trained: list[int]) -> None:
    sweep = sweep_of("search.space.finetune.steps={int: [1, 6], step: 5}", "search.pruner=median")
    hunt.run(sweep)
    assert sorted(steps_trained) == [0, 1, 2, 3, 4, 5]
    assert [t.state for t in hunt.tried(sweep)] == ["done", "done"]


def test_confirming_uses_fresh_seeds_and_has_controls(hunt: Hunt) -> None:
    overrides = ("search.confirm={top: 2, seeds: 2}", "search.space.finetune.steps=[1, 2]")
    sweep = sweep_of("seeds=[4, 7]", *overrides)
    heard = hunt.run(sweep)
    assert heard.confirmed == 2
    points = PointPlanner(sweep)
    assert points.fresh_seeds == (8, 9)
    seeds: Counter[int | None] = Counter()
    for trial in confirmed(hunt.tried(sweep), points):
        plan = points.confirming(trial.point)
        assert all(hunt.store.get(stage) is not None for stage in plan.stages)
        seeds.update(t.trial.seed for t in plan.trials)
        assert sum(t.is_control for t in plan.trials) == 2
    assert set(seeds) == {8, 9}
    [case] = hunt.cases(sweep)
    assert len(case.confirmed) == 2
    for found in case.confirmed:
        assert found.goal is not None and found.goal.low <= found.goal.value <= found.goal.high
        assert found.searched == found.tried.values[0]
        assert found.setting.planned == 2
        assert found.setting.control is not None
    assert case.worst is not None and case.worst.goal is not None
    assert case.worst.goal.value == max(c.goal.value for c in case.confirmed if c.goal)
    shown = table_of(hunt, sweep)
    assert f"steps={case.worst.tried.point['finetune.steps']}" in shown
    assert f"{case.worst.searched:.2f}" in shown and f"{case.worst.goal.value:.2f} [" in shown
    assert "on 2 fresh seeds" in shown and "to come" not in shown
    # While searching nothing was spent on controls.
    searched = [points.plan(points.trials(t.point)) for t in hunt.tried(sweep)]
    assert not any(t.is_control for plan in searched for t in plan.trials)
    assert hunt.training_states() == []


def stopping_after(count: int) -> Callable[[Heard], None]:
    def stop(heard: Heard) -> None:
        if len(heard.ran()) >= count:
            raise KeyboardInterrupt

    return stop


def is_run_to_its_end(hunt: Hunt, sweep: Sweep) -> bool:
    try:
        hunt.run(sweep, heard=Heard(stop=stopping_after(4)))
    except KeyboardInterrupt:
        return False
    return True


def test_a_search_that_is_stopped_again_and_again_has_the_right_total(hunt: Hunt) -> None:
    sweep = sweep_of(
        "search.sampler=tpe",
        "search.trials=6",
        "search.space.finetune.learning_rate={log: [1e-3, 1e-1]}",
        "search.pruner=hyperband",
        "search.confirm.top=1",
        "search.confirm.seeds=2",
    )
    stops = 0
    while not is_run_to_its_end(hunt, sweep):
        stops += 1
    assert stops >= 3
    tried = counted(hunt.tried(sweep))
    assert len(tried) == 6
    assert len({point_key(t.point) for t in tried}) == 6
    assert "running" not in {t.state for t in hunt.tried(sweep)}
    assert all(hunt.store.get(stage) is not None for stage in hunt.stages(sweep))
    [case] = hunt.cases(sweep)
    assert [c.goal is not None for c in case.confirmed] == [True]
    assert hunt.training_states() == []


def test_an_asked_trial_that_was_never_begun_is_not_lost(hunt: Hunt) -> None:
    sweep = sweep_of("search.sampler=random", "search.trials=3", RATES)
    with pytest.raises(KeyboardInterrupt):
        hunt.run(sweep, heard=Heard(stop=stopping_after(1)))
    left = [t for t in hunt.tried(sweep) if t.state == "running"]
    assert left
    hunt.run(sweep)
    tried = {t.number: t for t in hunt.tried(sweep)}
    assert len(counted(tried.values())) == 3
    for trial in left:
        assert tried[trial.number].state == "done"
        assert tried[trial.number].point == trial.point


def test_more_trials_go_on_where_fewer_ended(hunt: Hunt) -> None:
    hunt.run(sweep_of(RATES, "search.trials=2"))
    heard = hunt.run(sweep_of(RATES, "search.trials=5"))
    assert len(heard.told_trials) == 3
    assert len(counted(hunt.tried(sweep_of(RATES)))) == 5


def test_a_bound_decides_who_is_confirmed(hunt: Hunt) -> None:
    sweep = sweep_of(
        "search.maximize=erased_accuracy",
        "search.confirm={top: 3, seeds: 1}",
        "search.subject_to.glow='<= 0.3'",
        "evaluate.controls=false",
    )
    hunt.run(sweep)
    tried = hunt.tried(sweep)
    kept = {t.number for t in tried if t.numbers["glow"] <= 0.3}
    assert kept and len(kept) < 3
    [case] = hunt.cases(sweep)
    assert {c.tried.number for c in case.confirmed} == kept
    for found in case.confirmed:  # one seed says nothing of others, and is no reason to say nothing
        assert found.goal is not None
        assert (found.goal.low, found.goal.high) == (-math.inf, math.inf)
    assert "confirmed erased_accuracy" in table_of(hunt, sweep)


def test_several_numbers_may_be_sought(hunt: Hunt) -> None:
    sweep = sweep_of(
        "search.space.finetune.steps={int: [1, 3]}",
        "search.minimize=finetune.steps",
        "search.confirm={top: 3, seeds: 1}",
        "evaluate.controls=false",
    )
    hunt.run(sweep)
    tried = hunt.tried(sweep)
    assert [t.values[1] for t in tried] == [1.0, 2.0, 3.0]
    [case] = hunt.cases(sweep)
    assert case.worst is not None
    assert {c.tried.number for c in case.confirmed} <= {t.number for t in tried}


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"glow": ">= 2"}, ["glow >= 2: missed by all 3; the nearest was "]),
        (  # each can be kept, never both
            {"glow": "<= 0.3", "erased_accuracy": ">= 0.35"},
            ["glow <= 0.3: missed by ", "erased_accuracy >= 0.35: missed by "],
        ),
    ],
)
def test_bounds_that_no_setting_keeps_are_named(
    hunt: Hunt, bounds: dict[str, str], said: list[str]
) -> None:
    overrides = [f"search.subject_to.{name}='{bound}'" for name, bound in bounds.items()]
    sweep = sweep_of("search.confirm={top: 3, seeds: 2}", *overrides)
    heard = hunt.run(sweep)
    assert heard.confirmed == 0
    [case] = hunt.cases(sweep)
    assert case.confirmed == () and case.worst is None
    shown = table_of(hunt, sweep)
    assert "hunt: nothing to confirm: no setting kept every bound (3 ran to the end, 0 failed)" in (
        shown
    )
    assert "loosen search.subject_to or widen search.space" in shown
    for words in said:
        assert words in shown


def test_the_nearest_miss_is_the_smallest(hunt: Hunt) -> None:
    sweep = sweep_of("search.subject_to.glow='>= 2'")
    hunt.run(sweep)
    nearest = max(trial.numbers["glow"] for trial in hunt.tried(sweep))
    assert f"nearest was {nearest:.3g}, {2 - nearest:.2g} too low" in table_of(hunt, sweep)


def test_unlearning_that_never_worked_is_named(hunt: Hunt) -> None:
    sweep = sweep_of("unlearn=nudge", "search.confirm={top: 3, seeds: 2}")
    assert hunt.run(sweep).confirmed == 0
    shown = table_of(hunt, sweep)
    assert "unlearning took too little away for anything to come back: all 3" in shown


def test_bounds_that_break_on_fresh_seeds_are_named(hunt: Hunt) -> None:
    """The search keeps the bound because its number is one that fresh seeds do not have."""
    sweep = sweep_of("search.confirm={top: 1, seeds: 1}", "search.maximize=erased_accuracy")
    hunt.run(sweep)
    [case] = hunt.cases(sweep)
    [found] = case.confirmed
    searched, fresh = found.tried.numbers["glow"], found.numbers["glow"]
    assert searched != fresh
    sign, middle = ">=" if searched > fresh else "<=", (searched + fresh) / 2
    bounded = sweep_of(
        "name=bounded",
        "search.confirm={top: 1, seeds: 1}",
        "search.maximize=erased_accuracy",
        f"search.space.finetune.steps=[{found.tried.point['finetune.steps']}]",
        f"search.subject_to.glow='{sign} {middle!r}'",
    )
    hunt.run(bounded)
    shown = table_of(hunt, bounded)
    assert "bounded: none of the best settings kept every bound on fresh seeds" in shown
    assert f"glow {sign} {middle:g}: missed by all 1; the nearest was {fresh:.3g}, " in shown


def test_a_study_all_of_whose_trials_failed_says_why(hunt: Hunt) -> None:
    sweep = sweep_of("search.space.unlearn.dim.fail=[true]", "search.space.finetune.steps=[2]")
    hunt.run(sweep)
    shown = table_of(hunt, sweep)
    assert "nothing to confirm: no setting ran to the end (1 failed; the first: " in shown
    assert "told to fail" in shown


def test_nothing_is_amiss_where_nothing_was_to_be_confirmed(hunt: Hunt) -> None:
    sweep = sweep_of()
    hunt.run(sweep)
    shown = table_of(hunt, sweep)
    assert "hunt: nothing is confirmed: search.confirm.top is 0" in shown
    assert "kept every bound" not in shown
    command = [RESURGE, "search", "hunt", "--home", str(hunt.root)]
    hunt.store.put_sweep("hunt", {"sweep": sweep.canonical(), "source": sweep.source})
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_the_command_says_that_no_setting_kept_a_bound(hunt: Hunt) -> None:
    path = hunt.root / "hunt.yaml"
    path.write_text(HUNT)
    override = "search.subject_to.glow='>= 2'"
    command = [RESURGE, "search", str(path), override]
    done = subprocess.run(
        [*command, "search.confirm.top=3", "--home", str(hunt.root)], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "hunt: nothing to confirm: no setting kept every bound" in done.stdout
    assert "glow >= 2: missed by all 3; the nearest was " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    searched = {stage.key for stage in hunt.stages(sweep_of(override))}
    assert hunt.store.keys() == searched


PATIENCE_S = 600
"""Of a test that would otherwise hang where it should fail."""


class Pair(Executor):
    """Two workers, of which neither trains before the other one has been told to train too.

    What they do they do in turn: the code under test is the head's.
    """

    name = "pair"

    def start(self) -> None:
        from workers.runner import Runner

        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.idle = {"a", "b"}
        self._runner, self._turn = Runner(), threading.Lock()
        self._both = threading.Barrier(2, timeout=PATIENCE_S)
        self._threads = ThreadPoolExecutor(2)
        self._given: list[Future[None]] = []

    def workers(self) -> Workers:
        return Workers([FreeWorker(n, self._runner.holds) for n in sorted(self.idle)], most=2)

    def submit(self, order: WorkOrder, worker: str) -> None:
        self.idle.remove(worker)
        self._given.append(self._threads.submit(self._work, order, worker))

    def _work(self, order: WorkOrder, worker: str) -> None:
        if any(stage.kind == "finetune" for stage in order.task.stages):
            self._both.wait()
        with self._turn:
            self._runner.run(order, self.events.put)
        self.events.put(TaskEnded(order.task.id, worker, self._runner.holds))

    def wait(self, timeout_s: float) -> Sequence[Event]:
        for given in [given for given in self._given if given.done()]:
            given.result()
            self._given.remove(given)
        try:
            event = self.events.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if isinstance(event, TaskEnded):
            self.idle.add(event.worker)
        return [event]

    def shutdown(self) -> None:
        self._threads.shutdown(wait=True)


TWO_STUDIES = ("unlearn=[dim, nudge]", "search.for_each=unlearn.method")


@pytest.mark.parametrize(
    ("rates", "shared"), [("[1e-2, 3e-2]", TWO_STUDIES), ("[1e-3, 3e-3, 1e-2, 3e-2]", ())]
)
def test_a_study_that_takes_long_to_ask_blocks_no_free_worker(
    hunt: Hunt, monkeypatch: pytest.MonkeyPatch, rates: str, shared: tuple[str, ...]
) -> None:
    """From the third on a point is known only once one more of the trials before it was trained,
    and none is trained before both workers have one: both must be given work, and their news must
    be heard, while the study is still being asked.
    """
    trained = threading.Semaphore(0)
    ask, asked = Study.ask, list[Study]()

    def slow_ask(study: Study) -> Tried | None:
        asked.append(study)
        if len(asked) > 2:
            assert trained.acquire(timeout=PATIENCE_S), "no worker trained while the study was busy"
        return ask(study)

    def notice(heard: Heard) -> None:
        event = heard.events[-1]
        if isinstance(event, StageCommitted) and event.record.kind == "finetune":
            trained.release()

    # What all trials share is there already, so that they hang on nothing but their settings.
    text = HUNT[: HUNT.index("search:")]
    assert hunt.sweep(parse(text, None, ["finetune.steps=2", *shared[:1]])).ok
    monkeypatch.setattr(Study, "ask", slow_ask)
    one_step = ("search.space.finetune.steps=[1]", f"search.space.finetune.learning_rate={rates}")
    sweep = sweep_of(*shared, *one_step)
    hunt.run(sweep, heard=Heard(stop=notice), workers=Pair)
    assert [t.state for t in hunt.tried(sweep)] == ["done"] * 4


def test_a_search_is_read_without_what_it_was_run_on(
    hunt: Hunt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its studies and its store are enough: for the worst case, the tables, and MLflow."""
    sweep = sweep_of("search.trials=2", "search.confirm={top: 1, seeds: 1}")
    hunt.run(sweep)
    home = Home(hunt.root)
    job = Job(sweep, home)
    job.remember()
    runs = [run.digest for run in view_of(job).runs()]
    trials = [t.digest for t in job.plan.trials]
    assert open_results("hunt", home).points.__class__ is PointPlanner  # all is as it was
    monkeypatch.delenv("RESURGE_PLUGINS")
    read = open_results("hunt", home)
    assert read.worst_cases() == job.worst_cases()
    assert read.worst_cases()[0].worst is not None
    assert [t.digest for t in read.plan.trials] == trials
    assert is_complete(read.points, read.studies, read.store)
    assert [run.digest for run in view_of(read).runs()] == runs
    [known] = Inventory(hunt.store, home).sweeps
    assert known.keys == {stage.key for stage in job.plan.stages}
    with pytest.raises(SweepError):
        open_job("hunt", (), home)


def test_a_point_that_was_never_kept_is_named(hunt: Hunt, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of("search.trials=1")
    home = Home(hunt.root)
    Job(sweep, home).remember()
    hunt.run(sweep)  # by a head that was killed before its end
    monkeypatch.delenv("RESURGE_PLUGINS")
    with pytest.raises(ResurgeError, match="'hunt' was asked for by a run that was killed"):
        _ = open_results("hunt", home).plan
    [known] = Inventory(hunt.store, home).sweeps
    assert known.plan is None  # so that `gc` takes nothing that it may use
