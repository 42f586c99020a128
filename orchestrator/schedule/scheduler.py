"""Ready tasks -> executor: longest path first, warm workers preferred, failures contained.

What another head that shares the store is doing is waited for, not done twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core.artifacts import Failure
from orchestrator.core.redact import redact
from orchestrator.core.stage import Stage
from orchestrator.executors.base import Executor, WorkerKind
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageProgress,
    StageStarted,
    Task,
    TaskHandedBack,
    TaskOver,
    TaskRetried,
    TaskWaits,
    WorkerLost,
    WorkOrder,
)
from orchestrator.schedule.failures import Again, Final, Policy
from orchestrator.schedule.leases import Leases, units
from orchestrator.schedule.shares import Wish, shares
from orchestrator.store.store import Store

Listener = Callable[[Event], None]
"""Told of every event, in order, on the scheduler's thread; must be quick and not raise."""

LOOK_EVERY_S = 2.0
"""How often the store is asked what other heads have done, or are doing."""


@dataclass
class Outcome:
    """What became of a sweep's stages, by 16-digit key."""

    ran: set[str] = field(default_factory=set)
    failed: dict[str, Failure] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """Whether everything is done."""
        return not self.failed and not self.skipped


@dataclass(frozen=True)
class Rules:
    """What a sweep's resources say of its tasks.

    A task that is silent for `stage_timeout_s` is taken from its worker.
    """

    stage_timeout_s: float = math.inf
    checkpoint_every_s: float = 600.0


class Scheduler:
    """Runs tasks to their end on an executor that is already started.

    `run` ends when all is done. Who wants to add tasks on the way calls `advance` again and again.

    Args:
        tasks: what is to be done.
        done: 16-digit keys of the stages that are recorded.
        executor: where.
        store: where the records go.
        log_folder: where the workers write their logs, a file a task.
        listener: hears of everything.
        leases: this head's claims among other heads; None if there can be no other.
        rules: what the sweep's resources say.
        clock_s: a clock that only goes forward.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        done: Collection[str],
        executor: Executor,
        store: Store,
        log_folder: Path,
        listener: Listener = lambda event: None,
        leases: Leases | None = None,
        rules: Rules | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = list(tasks)
        self.running: dict[str, Task] = {}
        self.done = set(done)
        self.executor = executor
        self.store = store
        self.log_folder = log_folder
        self.listener = listener
        self.leases = leases
        self.rules = rules or Rules()
        self.outcome = Outcome()
        self._clock_s = clock_s
        self._policy = Policy(executor.workers().shares_gpu)
        self._again: dict[str, Again] = {}
        self._broken: set[str | None] = set()
        self._not_before_s: dict[str, float] = {}
        self._elsewhere: set[str] = set()
        self._looked_s = -math.inf
        self._may_have = math.inf
        self._heard_s: dict[str, float] = {}
        self._under_way: dict[str, dict[str, object]] = {}
        self._lack = ""

    def run(self) -> Outcome:
        """Until every stage is committed, failed or skipped."""
        while self.is_busy:
            self.advance(timeout_s=1.0)
        return self.outcome

    @property
    def is_busy(self) -> bool:
        """Whether a task is waiting or running."""
        return bool(self.waiting or self.running)

    @property
    def under_way(self) -> set[str]:
        """Keys of the stages that some task is going to do, or is doing."""
        tasks = (*self.waiting, *self.running.values())
        return {stage.key for task in tasks for stage in task.stages} - self.done

    def lost(self) -> set[str]:
        """Keys that had a record and have none any more: whoever read it found damage and set it
        aside. They are not done from now on.
        """
        gone = self.done - self.store.keys()
        self.done -= gone
        self.outcome.ran -= gone
        return gone

    def add(self, tasks: Iterable[Task]) -> None:
        """More tasks; none of their stages may be under way already."""
        self.waiting.extend(tasks)

    def advance(self, timeout_s: float) -> None:
        """Start what can be started, then handle what happens; wait for that no longer than told.

        Without a running task it waits too: workers are still starting.
        """
        self._skip_hopeless()
        self._look_at_others()
        self._adapt()
        self._submit_ready()
        self._say_what_lacks()
        if self.is_busy:
            for event in self.executor.wait(timeout_s):
                self._handle(event)
            self._end_silence()

    def _adapt(self) -> None:
        """Tell the executor how many workers of which kind are of use, and the others too."""
        wanted: dict[WorkerKind, int] = {}
        for task in (*self._ready(), *self.running.values()):
            need = self._need(task)
            wanted[need] = wanted.get(need, 0) + 1
        if self.leases is not None:
            models = (count for need, count in wanted.items() if need.pool == "model")
            self.leases.wants = min(sum(models), self.executor.workers().most)
            self.leases.running = list(self._under_way.values())
        self.executor.adapt(wanted, self._may_have)

    def _say_what_lacks(self) -> None:
        """Once for each thing that no machine has."""
        lack = self.executor.lacks()
        if lack and lack != self._lack and (ready := self._ready()):
            self.listener(TaskWaits(ready[0].id, lack))
        self._lack = lack

    def _submit_ready(self) -> None:
        """Give each free worker the ready task with the longest path; one whose model it holds
        goes before all.
        """
        for worker in self.executor.workers().free:

            def rank(task: Task, holds: str | None = worker.holds) -> tuple[bool, float]:
                return task.after is not None and task.after.digest == holds, task.path_cost

            fitting = (task for task in self._ready() if worker.has.fits(self._need(task)))
            by_rank = sorted(fitting, key=rank, reverse=True)
            task = next(filter(self._claim, by_rank), None)
            if task is None:
                continue
            self.waiting.remove(task)
            self.running[task.id] = task
            self._heard_s[task.id] = self._clock_s()
            history = self._policy.history(task.id)
            order = WorkOrder(
                task,
                self.store.location,
                self._log_path(task),
                history.split,
                self.rules.checkpoint_every_s,
            )
            self.executor.submit(order, worker.name)

    def _need(self, task: Task) -> WorkerKind:
        return WorkerKind(task.pool, self._policy.history(task.id).has_whole_gpu)

    def _ready(self) -> list[Task]:
        """The waiting tasks that could start now. A trajectory that goes on, or a model that is
        evaluated further, waits for the task that has it.
        """
        busy = {unit for task in self.running.values() for unit in units(task)}
        now_s = self._clock_s()
        return [
            task
            for task in self.waiting
            if task.id not in self._elsewhere
            and now_s >= self._not_before_s.get(task.id, -math.inf)
            and all(stage.key in self.done for stage in task.waits_for)
            and busy.isdisjoint(units(task))
        ]

    def _claim(self, task: Task) -> bool:
        """Whether no other head does any of it."""
        if self.leases is None or self.leases.claim(task):
            return True
        self._elsewhere.add(task.id)
        return False

    def _look_at_others(self) -> None:
        """Take what other heads recorded, and ask again for what they may have dropped."""
        now_s = self._clock_s()
        if self.leases is None or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if self._elsewhere:
            recorded = self.store.keys()
            for task in [task for task in self.waiting if task.id in self._elsewhere]:
                for stage in task.stages:
                    is_new = stage.key in recorded and stage.key not in self.done
                    if is_new and (record := self.store.get(stage)) is not None:
                        self._handle(StageCommitted(task.id, stage.key, record, ran=False))
                if all(stage.key in self.done for stage in task.stages):
                    self.waiting.remove(task)
            self._elsewhere.clear()
        others = [head for head in self.leases.others() if head.wants]
        self._may_have = math.inf
        if others:
            wishes = {head.process.id: Wish(head.wants, head.priority) for head in others}
            me = self.leases.process.id
            wishes[me] = Wish(self.leases.wants, self.leases.priority)
            self._may_have = shares(wishes, self.executor.workers().room)[me]

    def _skip_hopeless(self) -> None:
        """Drop the tasks whose parent model or materials failed or were skipped."""
        lost = self.outcome.failed.keys() | self.outcome.skipped
        hopeless = [t for t in self.waiting if any(s.key in lost for s in t.waits_for)]
        for task in hopeless:
            self.waiting.remove(task)
            self.outcome.skipped.update(stage.key for stage in task.stages)
        if hopeless:
            self._skip_hopeless()

    def _handle(self, event: Event) -> None:
        self._heard_s[event.task_id] = self._clock_s()
        if isinstance(event, StageCommitted):
            self.done.add(event.key)
            if event.ran:
                self.outcome.ran.add(event.key)
        elif isinstance(event, StageStarted):
            self._under_way[event.task_id] = {"key": event.key, "done": 0, "total": 0}
        elif isinstance(event, StageProgress):
            shown = {"key": event.key, "done": event.done, "total": event.total}
            self._under_way[event.task_id] = shown
        elif isinstance(event, StageFailed):
            verdict = self._policy.on_failure(event)
            if isinstance(verdict, Again):
                self._again[event.task_id] = verdict
                self.listener(TaskRetried(event.task_id, verdict.why))
            else:
                failure = event.failure
                failure = replace(failure, cause=verdict.cause, message=verdict.message)
                self._fail(self.running[event.task_id], event.key, failure)
            return  # whoever listens has been told what that came to
        elif isinstance(event, TaskOver):
            self._over(event)
        self.listener(event)

    def _fail(self, task: Task, key: str, failure: Failure) -> None:
        self.outcome.failed[key] = failure
        stage = next(stage for stage in task.stages if stage.key == key)
        self._broken |= {stage.trajectory} - {None}
        self.store.put_failure(stage, failure)
        self.listener(StageFailed(task.id, key, failure))

    def _over(self, event: TaskOver) -> None:
        """What the worker neither committed nor failed is tried again, or fails with the worker, or
        is skipped, because a parent failed.
        """
        task = self.running.pop(event.task_id)
        self._under_way.pop(task.id, None)
        if self.leases is not None:
            self.leases.release(task)
        over = self.done | self.outcome.failed.keys()
        left = [stage for stage in task.stages if stage.key not in over]
        verdict: Again | Final | None = self._again.pop(task.id, None)
        if verdict is None and isinstance(event, TaskHandedBack):
            verdict = Again("handed back")
        elif verdict is None and isinstance(event, WorkerLost):
            verdict = self._policy.on_loss(event)
        if isinstance(verdict, Again):
            self._requeue(task, left, verdict)
        elif verdict is not None and left:
            self.outcome.skipped.update(stage.key for stage in left[1:])
            failure = Failure(redact(verdict.message), self._log_path(task), verdict.cause)
            self._fail(task, left[0].key, failure)
        else:
            self.outcome.skipped.update(stage.key for stage in left)

    def _requeue(self, task: Task, left: Sequence[Stage], again: Again) -> None:
        """The task's rest, without what hangs on a stage that failed for good: on an ancestor, or
        on a smaller step count of its trajectory.
        """
        bad = self.outcome.failed.keys() | self._broken
        hopeless = [
            stage
            for stage in left
            if any(one.key in bad or one.trajectory in bad for one in stage.ancestry())
        ]
        self.outcome.skipped.update(stage.key for stage in hopeless)
        rest = tuple(stage for stage in left if stage not in hopeless)
        if rest:
            self._not_before_s[task.id] = self._clock_s() + again.pause_s
            self.waiting.append(replace(task, stages=rest))

    def _log_path(self, task: Task) -> str:
        return str(self.log_folder / f"{task.id}.log")

    def _end_silence(self) -> None:
        """Take a task from a worker of which nothing was heard for too long."""
        limit_s = self.rules.stage_timeout_s
        for task_id in self.running:
            if self._clock_s() - self._heard_s[task_id] > limit_s:
                self._heard_s[task_id] = self._clock_s()
                self.executor.abandon(task_id, f"nothing was heard for {limit_s / 60:g} min")
