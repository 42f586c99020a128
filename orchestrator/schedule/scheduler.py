"""Ready tasks -> executor: longest path first, warm workers preferred, failures contained.

What another head that shares the store is doing is waited for, not done twice.
"""

from __future__ import annotations

import math
import time
from collections import Counter
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
from orchestrator.schedule.leases import Leases
from orchestrator.schedule.queue import Entry, Queue
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
        self.running: dict[str, Entry] = {}
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
        self._queue = Queue()
        self._running_needs: Counter[WorkerKind] = Counter()
        self._looked_s = -math.inf
        self._listened_s = -math.inf
        self._may_have = math.inf
        self._heard_s: dict[str, float] = {}
        self._under_way: dict[str, dict[str, object]] = {}
        self._lack = ""
        self.add(tasks)

    def run(self) -> Outcome:
        """Until every stage is committed, failed or skipped."""
        while self.is_busy:
            self.advance(timeout_s=1.0)
        return self.outcome

    @property
    def is_busy(self) -> bool:
        """Whether a task is waiting or running."""
        return bool(self._queue or self.running)

    @property
    def under_way(self) -> set[str]:
        """Keys of the stages that some task is going to do, or is doing."""
        tasks = (*self._queue, *(entry.task for entry in self.running.values()))
        return {stage.key for task in tasks for stage in task.stages} - self.done

    def lost(self) -> set[str]:
        """Keys that had a record and have none any more: whoever read it found damage and set it
        aside. They are not done from now on.
        """
        gone = self.done - self.store.keys()
        self.done -= gone
        self.outcome.ran -= gone
        for key in gone:
            self._queue.gone(key)
        return gone

    def add(self, tasks: Iterable[Task]) -> None:
        """More tasks; none of their stages may be under way already."""
        for task in tasks:
            self._wait(task)

    def advance(self, timeout_s: float) -> None:
        """Start what can be started, then handle what happens; wait for that no longer than told.

        Without a running task it waits too: workers are still starting.
        """
        self._queue.wake(self._clock_s())
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
        wanted = self._queue.wanted + self._running_needs
        if self.leases is not None:
            models = (count for need, count in wanted.items() if need.pool == "model")
            self.leases.wants = min(sum(models), self.executor.workers().most)
        self.executor.adapt(wanted, self._may_have)

    def _say_what_lacks(self) -> None:
        """Once for each thing that no machine has."""
        lack = self.executor.lacks()
        if lack and lack != self._lack and (first := self._queue.first()):
            self.listener(TaskWaits(first.task.id, lack))
        self._lack = lack

    def _submit_ready(self) -> None:
        """Give each free worker the ready task with the longest path; one whose model it holds
        goes before all.
        """
        if not self._queue.wanted.total():
            return
        for worker in self.executor.workers().free:
            if not self._queue.wanted.total():
                return
            entry = self._queue.best_for(worker)
            while entry is not None and not self._claim(entry):
                entry = self._queue.best_for(worker)
            if entry is not None:
                self._start(entry, worker.name)

    def _start(self, entry: Entry, worker: str) -> None:
        task = entry.task
        self._queue.start(entry)
        self.running[task.id] = entry
        self._running_needs[entry.need] += 1
        self._heard_s[task.id] = self._clock_s()
        order = WorkOrder(
            task,
            self.store.location,
            self._log_path(task),
            self._policy.history(task.id).split,
            self.rules.checkpoint_every_s,
        )
        self.executor.submit(order, worker)

    def _wait(self, task: Task, pause_s: float = 0.0) -> None:
        """Put a task into the queue, unless what it reads failed or was skipped."""
        if any(map(self._is_hopeless, task.waits_for)):
            self._skip(task.stages)
            return
        need = WorkerKind(task.pool, self._policy.history(task.id).has_whole_gpu)
        until_s = self._clock_s() + pause_s if pause_s else -math.inf
        self._queue.add(task, need, self.done, until_s)

    def _claim(self, entry: Entry) -> bool:
        """Whether no other head does any of it."""
        if self.leases is None or self.leases.claim(entry.task):
            return True
        self._queue.leave(entry)
        return False

    def _look_at_others(self) -> None:
        """Take what other heads recorded, ask again for what they may have dropped, and let them
        know what runs here.
        """
        now_s = self._clock_s()
        if self.leases is None or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        self.leases.running = list(self._under_way.values())
        if self._queue.elsewhere:
            recorded = self.store.keys()
            for entry in list(self._queue.elsewhere):
                task = entry.task
                for stage in task.stages:
                    is_new = stage.key in recorded and stage.key not in self.done
                    if is_new and (record := self.store.get(stage)) is not None:
                        self._handle(StageCommitted(task.id, stage.key, record, ran=False))
                if all(stage.key in self.done for stage in task.stages):
                    self._queue.remove(entry)
            self._queue.ask_again()
        others = [head for head in self.leases.others() if head.wants]
        self._may_have = math.inf
        if others:
            wishes = {head.process.id: Wish(head.wants, head.priority) for head in others}
            me = self.leases.process.id
            wishes[me] = Wish(self.leases.wants, self.leases.priority)
            self._may_have = shares(wishes, self.executor.workers().room)[me]

    def _is_hopeless(self, stage: Stage) -> bool:
        return stage.key in self.outcome.failed or stage.key in self.outcome.skipped

    def _skip(self, stages: Iterable[Stage]) -> None:
        keys = [stage.key for stage in stages]
        self.outcome.skipped.update(keys)
        self._skip_readers(keys)

    def _skip_readers(self, keys: Iterable[str]) -> None:
        """Drop the tasks whose parent model or materials failed or were skipped."""
        lost = list(keys)
        while lost:
            for entry in self._queue.reading(lost.pop()):
                self._queue.remove(entry)
                gone = [stage.key for stage in entry.task.stages]
                self.outcome.skipped.update(gone)
                lost += gone

    def _handle(self, event: Event) -> None:
        self._heard_s[event.task_id] = self._clock_s()
        if isinstance(event, StageCommitted):
            self.done.add(event.key)
            self._queue.recorded(event.key)
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
                self._fail(self.running[event.task_id].task, event.key, failure)
            return  # whoever listens has been told what that came to
        elif isinstance(event, TaskOver):
            self._over(event)
        self.listener(event)

    def _fail(self, task: Task, key: str, failure: Failure) -> None:
        self.outcome.failed[key] = failure
        self._skip_readers([key])
        stage = next(stage for stage in task.stages if stage.key == key)
        self._broken |= {stage.trajectory} - {None}
        self.store.put_failure(stage, failure)
        self.listener(StageFailed(task.id, key, failure))

    def _over(self, event: TaskOver) -> None:
        """What the worker neither committed nor failed is tried again, or fails with the worker, or
        is skipped, because a parent failed.
        """
        entry = self.running.pop(event.task_id)
        task = entry.task
        self._under_way.pop(task.id, None)
        self._heard_s.pop(task.id, None)
        self._running_needs[entry.need] -= 1
        self._queue.end(entry)
        if self.leases is not None:
            self.leases.release(task)
        failed = self.outcome.failed
        left = [s for s in task.stages if s.key not in self.done and s.key not in failed]
        verdict: Again | Final | None = self._again.pop(task.id, None)
        if verdict is None and isinstance(event, TaskHandedBack):
            verdict = Again("handed back")
        elif verdict is None and isinstance(event, WorkerLost):
            verdict = self._policy.on_loss(event)
        if isinstance(verdict, Again):
            self._requeue(task, left, verdict)
        elif verdict is not None and left:
            self._skip(left[1:])
            failure = Failure(redact(verdict.message), self._log_path(task), verdict.cause)
            self._fail(task, left[0].key, failure)
        else:
            self._skip(left)

    def _requeue(self, task: Task, left: Sequence[Stage], again: Again) -> None:
        """The task's rest, without what hangs on a stage that failed for good: on an ancestor, or
        on a smaller step count of its trajectory.
        """

        def is_hopeless(stage: Stage) -> bool:
            failed, broken = self.outcome.failed, self._broken
            return any(s.key in failed or s.trajectory in broken for s in stage.ancestry())

        hopeless = [stage for stage in left if is_hopeless(stage)]
        self._skip(hopeless)
        rest = tuple(stage for stage in left if stage not in hopeless)
        if rest:
            self._wait(replace(task, stages=rest), again.pause_s)

    def _log_path(self, task: Task) -> str:
        return str(self.log_folder / f"{task.id}.log")

    def _end_silence(self) -> None:
        """Take a task from a worker of which nothing was heard for too long."""
        limit_s, now_s = self.rules.stage_timeout_s, self._clock_s()
        if now_s - self._listened_s < min(LOOK_EVERY_S, limit_s / 10) or math.isinf(limit_s):
            return
        self._listened_s = now_s
        for task_id in self.running:
            if now_s - self._heard_s[task_id] > limit_s:
                self._heard_s[task_id] = now_s
                self.executor.abandon(task_id, f"nothing was heard for {limit_s / 60:g} min")
