"""What every executor must do, each with real workers; the simulated one as far as it goes.

A new one in `orchestrator/executors/` is found; it is taken to have workers that are processes.
"""

from __future__ import annotations

import importlib
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from orchestrator.core.registry import find, registry
from orchestrator.core.stage import Stage
from orchestrator.executors.base import Executor, ExecutorSettings
from orchestrator.executors.simulated import Simulated
from orchestrator.home import Home
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageStarted,
    TaskEnded,
    TaskHandedBack,
    TaskOver,
    WorkerLost,
    WorkOrder,
)
from orchestrator.plan.plan import make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.run.job import open_job
from orchestrator.run.run import run_job
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from tests.conftest import RECORDING, SMALL
from tests.processes import title

pytestmark = [pytest.mark.slow]

OURS = [n for n, cls in registry("executor").items() if cls.__module__.startswith("orchestrator.")]
NAMES = (*OURS, "processes")  # a plug-in of the tests

TOLD = {
    "bug": "cannot reach postgresql",
    "exit": "sys.exit: no licence for this",
    "interrupt": "nobody pressed a key",
}
"""What a plug-in raises, and what is told of it. All but the first would end a process."""

QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
MOST_WAITS = 2_000
"""Of a test that would otherwise hang where it should fail."""


def simulated(settings: ExecutorSettings) -> Simulated:
    """It has the troubles that the real ones get from their plug-ins."""

    def asked(stage: Stage, name: str) -> str:
        return str(stage.settings.get("settings", {}).get(name, ""))

    def dies(stage: Stage) -> bool:
        once = asked(stage, "die")
        is_first = bool(once) and not Path(once).exists()
        if is_first:
            Path(once).touch()
        return is_first

    return Simulated(
        settings,
        dies=dies,
        fails=lambda order, stage: "bug" if asked(stage, "over") in TOLD else None,
        hangs=lambda stage: asked(stage, "over") == "silence",
    )


@pytest.fixture(scope="module", autouse=True)
def plugins() -> Iterator[None]:
    """The recording plug-ins, one of which is an executor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESURGE_PLUGINS", str(RECORDING))
        yield


def processes() -> set[psutil.Process]:
    """Those below this one, but for the tracker that multiprocessing keeps until the end."""
    below = psutil.Process().children(recursive=True)
    return {p for p in below if "resource_tracker" not in title(p)}


@pytest.fixture(scope="module")
def others(plugins: None) -> set[psutil.Process]:
    """The processes that were there before any executor was started."""
    return processes()


@pytest.fixture(scope="module")
def executor(request: pytest.FixtureRequest, others: set[psutil.Process]) -> Iterator[Executor]:
    """One with two workers, if it can; the tests of a kind share it."""
    settings = ExecutorSettings(workers=2, threads=1)
    make = {"simulated": simulated}.get(request.param) or find("executor", request.param)
    if request.param == "ray":  # a program that uses Ray has imported it long ago
        importlib.import_module("ray")
    with make(settings) as started:
        yield started


def but(*others: str) -> pytest.MarkDecorator:
    """Run by every executor but these."""
    marks = {"ray": pytest.mark.integration}
    params = [pytest.param(n, marks=marks.get(n, ())) for n in NAMES if n not in others]
    return pytest.mark.parametrize("executor", params, indirect=True)


every = but()
with_workers_to_lose = but("inline")
with_processes = but("inline", "simulated")


class Head:
    """Gives orders to free workers, as the scheduler does, and remembers what it hears."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.events: list[Event] = []
        self.busy: dict[str, str] = {}

    def give(self, order: WorkOrder, worker: str | None = None) -> str:
        """To the first free worker, or to that one."""
        self.until(lambda: any(worker in (None, w.name) for w in self.executor.workers().free))
        workers = self.executor.workers()
        free = [w.name for w in workers.free]
        assert not set(free) & set(self.busy.values()), "who has a task is not free"
        assert len(self.busy) + len(free) <= workers.most
        name = worker or free[0]
        self.executor.submit(order, name)
        self.busy[order.task.id] = name
        return name

    def until(self, is_true: Callable[[], bool]) -> None:
        """Listen until something is the case."""
        for _ in range(MOST_WAITS):
            if is_true():
                return
            for event in self.executor.wait(1.0):
                assert event.task_id in self.busy, "a task that is over is not heard of"
                self.events.append(event)
                if isinstance(event, TaskOver):
                    assert event.worker == self.busy.pop(event.task_id)
        raise AssertionError(f"waited for long; heard {self.events}")

    def finish(self) -> None:
        """Listen until every task is over."""
        self.until(lambda: not self.busy)

    def last(self, order: WorkOrder) -> Event:
        """The last that was heard of a task."""
        return self.of(order)[-1]

    def of(self, order: WorkOrder) -> list[Event]:
        """All that was heard of a task."""
        return [event for event in self.events if event.task_id == order.task.id]

    def holds(self, worker: str) -> str | None:
        """What a free worker says it holds."""
        return {w.name: w.holds for w in self.executor.workers().free}[worker]


@pytest.fixture
def head(executor: Executor) -> Iterator[Head]:
    """Its tasks are over in the end, so that the next test finds free workers."""
    started = Head(executor)
    yield started
    started.finish()


@pytest.fixture
def orders(tmp_path: Path) -> Callable[..., list[WorkOrder]]:
    """A task for each of some unlearnings of the tiny base: the model, its images, their score."""

    def make(*unlearners: str) -> list[WorkOrder]:
        sweep = parse(SMALL, None, [f"unlearn=[{', '.join(unlearners)}]"])
        stages = make_plan(sweep).stages
        tasks = make_tasks(make_plan(sweep), {s.key for s in stages if s.kind == "prepare"}, ())
        return [
            WorkOrder(task, str(tmp_path / "store"), str(tmp_path / "logs" / f"{task.id}.log"))
            for task in tasks
            if task.stages[0].kind == "unlearn"
        ]

    return make


def nudge(amount: float = 0.01, **settings: object) -> str:
    given = "".join(f", {name}: {value}" for name, value in settings.items())
    return f"{{nudge: {{amount: {amount}{given}}}}}"


def committed(events: Sequence[Event]) -> list[str]:
    return [event.key for event in events if isinstance(event, StageCommitted)]


def keys(order: WorkOrder) -> list[str]:
    return [stage.key for stage in order.task.stages]


@every
def test_every_task_ends_once_and_is_heard_of_in_order(
    head: Head, orders: Callable[..., list[WorkOrder]]
) -> None:
    given = orders(nudge(0.01), nudge(0.02), nudge(0.03))
    assert len(given) == 3
    for order in given:
        head.give(order)
    head.finish()
    for order in given:
        events = head.of(order)
        assert sum(isinstance(event, TaskOver) for event in events) == 1
        assert isinstance(events[-1], TaskEnded)
        assert [key for key, _ in groupby(event.key for event in events[:-1])] == keys(order)
        assert committed(events) == keys(order)
        digests = [e.record.digest for e in events if isinstance(e, StageCommitted)]
        assert digests == [stage.digest for stage in order.task.stages]


@every
def test_who_has_a_task_is_not_free(head: Head, orders: Callable[..., list[WorkOrder]]) -> None:
    most = head.executor.workers().most
    head.until(lambda: len(head.executor.workers().free) == most)
    for order in orders(nudge(0.01), nudge(0.02))[:most]:
        head.give(order)
    assert not head.executor.workers().free
    head.finish()
    assert len(head.executor.workers().free) == most


@every
def test_a_free_worker_says_which_model_it_holds(
    head: Head, orders: Callable[..., list[WorkOrder]]
) -> None:
    [order] = orders(nudge())
    worker = head.give(order)
    head.finish()
    ended = head.last(order)
    assert isinstance(ended, TaskEnded)
    assert ended.holds in {stage.digest for stage in order.task.stages}
    assert head.holds(worker) == ended.holds


@every
def test_what_is_recorded_is_told_and_not_done_again(
    head: Head, orders: Callable[..., list[WorkOrder]]
) -> None:
    if isinstance(head.executor, Simulated):
        pytest.skip("it has no store")
    [order] = orders(nudge())
    for _ in range(2):
        head.give(order)
        head.finish()
    ran = [event.ran for event in head.events if isinstance(event, StageCommitted)]
    assert ran == [True] * len(keys(order)) + [False] * len(keys(order))


@every
def test_a_failing_stage_is_told_with_its_cause_and_the_task_ends(
    head: Head, orders: Callable[..., list[WorkOrder]]
) -> None:
    given = orders(*(f"{{trip: {{over: {over}}}}}" for over in TOLD))
    for order, said in zip(given, TOLD.values(), strict=True):
        head.give(order)
        head.finish()
        [failed] = [event for event in head.of(order) if isinstance(event, StageFailed)]
        assert (failed.key, failed.failure.cause) == (keys(order)[0], "bug")
        assert isinstance(head.last(order), TaskEnded)
        if not isinstance(head.executor, Simulated):
            assert said in failed.failure.message
            assert said.split(": ")[-1] in Path(str(failed.failure.log_path)).read_text()
    assert not committed(head.events), "nothing that hangs on it is done"


@with_workers_to_lose
def test_a_lost_worker_takes_one_task_with_it_which_can_be_given_again(
    head: Head, orders: Callable[..., list[WorkOrder]], tmp_path: Path
) -> None:
    dying, other = orders(nudge(die=tmp_path / "died"), nudge(0.02))
    worker = head.give(dying)
    head.give(other)
    head.finish()
    lost = head.last(dying)
    assert isinstance(lost, WorkerLost)
    assert (lost.worker, lost.how) == (worker, "death")
    assert lost.reason
    assert isinstance(head.last(other), TaskEnded)
    head.give(dying)
    head.finish()
    assert isinstance(head.last(dying), TaskEnded)
    assert committed(head.of(dying)) == keys(dying)


@with_workers_to_lose
def test_a_hung_task_is_taken_from_its_worker(
    head: Head, orders: Callable[..., list[WorkOrder]]
) -> None:
    [order] = orders("{trip: {over: silence}}")
    worker = head.give(order)
    if not isinstance(head.executor, Simulated):
        head.until(lambda: any(isinstance(event, StageStarted) for event in head.events))
    head.executor.abandon(order.task.id, "nothing was heard")
    head.finish()
    assert head.last(order) == WorkerLost(order.task.id, worker, "nothing was heard", "hang")
    head.until(lambda: worker in {w.name for w in head.executor.workers().free})


@with_processes
def test_a_worker_that_is_asked_to_leave_hands_its_task_back(
    head: Head, orders: Callable[..., list[WorkOrder]], tmp_path: Path
) -> None:
    [order] = orders(nudge(leave=tmp_path / "left"))
    worker = head.give(order)
    head.finish()
    assert head.last(order) == TaskHandedBack(order.task.id, worker)
    head.give(order, worker)
    head.finish()
    assert isinstance(head.last(order), TaskEnded), "another one has its place"


@with_processes
def test_a_worker_that_died_idle_is_replaced(
    head: Head, orders: Callable[..., list[WorkOrder]], tmp_path: Path
) -> None:
    first, second = orders(nudge(pid=tmp_path / "pid"), nudge(0.02))
    worker = head.give(first)
    head.finish()
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process])
    head.give(second, worker)
    head.finish()
    if isinstance(head.last(second), WorkerLost):
        assert head.executor.workers().most == 2
        head.give(second, worker)
        head.finish()
    assert isinstance(head.last(second), TaskEnded)


@every
def test_a_sweep_comes_to_the_same_everywhere(
    executor: Executor, expected: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    outcome, found = swept(executor, tmp_path)
    assert outcome == set(expected)
    if not isinstance(executor, Simulated):
        assert found == expected


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """The numbers of a small sweep, as one worker in this process finds them."""
    with find("executor", "inline")(ExecutorSettings()) as executor:
        assert isinstance(executor, Executor)
        return swept(executor, tmp_path_factory.mktemp("expected"))[1]


def swept(executor: Executor, folder: Path) -> tuple[set[str], dict[str, dict[str, float]]]:
    """The keys of what ran without failure, and the metrics of what is in the store then."""
    plan = make_plan(parse(SMALL, None, ["seeds=1", "unlearn=nudge"]))
    store = Store(folder / "store")
    outcome = Scheduler(make_tasks(plan, (), ()), (), executor, store, folder / "logs").run()
    assert outcome.ok
    records = (store.get(stage) for stage in plan.stages)
    return outcome.ran, {record.key: dict(record.metrics) for record in records if record}


@pytest.mark.integration
def test_the_quickstart_runs_on_an_executor_of_ones_own(tmp_path: Path) -> None:
    """All of its methods, data sets and rates; fewer seeds, steps and pictures."""
    methods = "unlearn=[{esd: {group: u, iterations: 10}}, uce]"
    less = ("seeds=1", "finetune.steps=[0, 1, 2]", "evaluate.images_per_prompt=1", methods)
    given = ("resources.executor=processes", "resources.threads=1")
    job = open_job(str(QUICKSTART), (*less, *given), Home(tmp_path))
    page = io.StringIO()
    assert run_job(job, Console(file=page, width=200)).ok, page.getvalue()
    assert job.done() == {stage.key for stage in job.plan.stages}
    assert job.home.results("quickstart").exists()


# The last one of each kind


@every
def test_closing_leaves_nothing_behind_whatever_is_running(
    executor: Executor,
    others: set[psutil.Process],
    orders: Callable[..., list[WorkOrder]],
) -> None:
    """Twice, as the fixture closes it as well."""
    if executor.name not in ("inline", "simulated"):
        head = Head(executor)
        [order] = orders("{trip: {over: silence}}")
        head.give(order)
        head.until(lambda: any(isinstance(event, StageStarted) for event in head.events))
        assert processes() - others
    executor.shutdown()
    _, alive = psutil.wait_procs(list(processes() - others), timeout=60)
    assert not alive
