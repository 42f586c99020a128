"""Ready tasks -> executor: longest path first, warm workers preferred, failures contained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.executors.base import Executor, FreeWorker
from orchestrator.stage import Stage
from orchestrator.store import Store
from orchestrator.work import (
    Event,
    StageCommitted,
    StageFailed,
    Task,
    TaskEnded,
    WorkerLost,
    WorkOrder,
)

Listener = Callable[[Event], None]
"""Told of every event, in order, on the scheduler's thread; must be quick and not raise."""

MAX_LOSSES = 3
"""A task that took this many workers with it is failed, not tried again."""


@dataclass
class Outcome:
    """What became of a sweep's stages, by 16-digit key."""

    ran: set[str] = field(default_factory=set)
    failed: dict[str, StageFailed] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """Whether everything is done."""
        return not self.failed and not self.skipped


class Scheduler:
    """Runs tasks to their end on an executor that is already started.

    `run` ends when all is done. Who wants to add tasks on the way calls `advance` again and again.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        done: Collection[str],
        executor: Executor,
        store: Store,
        log_folder: Path,
        listener: Listener = lambda event: None,
    ) -> None:
        self.waiting = list(tasks)
        self.running: dict[str, Task] = {}
        self.done = set(done)
        self.executor = executor
        self.store = store
        self.log_folder = log_folder
        self.listener = listener
        self.losses: Counter[str] = Counter()
        self.outcome = Outcome()

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

    def add(self, tasks: Iterable[Task]) -> None:
        """More tasks; none of their stages may be under way already."""
        self.waiting.extend(tasks)

    def advance(self, timeout_s: float) -> None:
        """Start what can be started, then handle what happens; wait for that no longer than told.

        Without a running task it waits too: workers are still starting.
        """
        self._skip_hopeless()
        self._submit_ready()
        if self.is_busy:
            for event in self.executor.wait(timeout_s):
                self._handle(event)

    def _submit_ready(self) -> None:
        for worker in self.executor.free_workers():
            task = self._next_for(worker)
            if task is None:
                return
            self.waiting.remove(task)
            self.running[task.id] = task
            log_path = self.log_folder / f"{task.id}.log"
            self.executor.submit(WorkOrder(task, self.store.location, str(log_path)), worker.name)

    def _next_for(self, worker: FreeWorker) -> Task | None:
        """The ready task with the longest path; one whose model the worker holds goes first."""
        ready = [task for task in self.waiting if self._is_ready(task)]
        return max(
            ready,
            key=lambda task: (
                task.after is not None and task.after.digest == worker.holds,
                task.path_cost,
            ),
            default=None,
        )

    def _is_ready(self, task: Task) -> bool:
        """A trajectory that goes on waits for its earlier part, which has the same id."""
        is_free = task.id not in self.running
        return is_free and all(stage.key in self.done for stage in task.waits_for)

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
        if isinstance(event, StageCommitted):
            self.done.add(event.key)
            if event.ran:
                self.outcome.ran.add(event.key)
        elif isinstance(event, StageFailed):
            self._fail(self.running[event.task_id], event)
        elif isinstance(event, TaskEnded):
            self._end(self.running.pop(event.task_id))
        elif isinstance(event, WorkerLost):
            self._retry(self.running.pop(event.task_id), event)
        self.listener(event)

    def _fail(self, task: Task, event: StageFailed) -> None:
        self.outcome.failed[event.key] = event
        stage = next(stage for stage in task.stages if stage.key == event.key)
        self.store.put_failure(stage, event.message, event.log_path)

    def _end(self, task: Task) -> None:
        """What the worker neither committed nor failed, it left out because a parent failed."""
        self.outcome.skipped.update(stage.key for stage in self._left(task))

    def _retry(self, task: Task, event: WorkerLost) -> None:
        self.losses[task.id] += 1
        if self.losses[task.id] < MAX_LOSSES:
            self.waiting.append(task)
            return
        first, *rest = self._left(task)
        message = f"{event.reason}; the task lost {MAX_LOSSES} workers and is not tried again"
        log_path = str(self.log_folder / f"{task.id}.log")
        self._fail(task, StageFailed(task.id, first.key, message, log_path))
        self.outcome.skipped.update(stage.key for stage in rest)

    def _left(self, task: Task) -> list[Stage]:
        return [
            stage
            for stage in task.stages
            if stage.key not in self.done and stage.key not in self.outcome.failed
        ]
