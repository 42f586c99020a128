"""What the head and the workers say to each other: work orders one way, events the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.core.artifacts import Failure
from orchestrator.core.stage import Stage
from orchestrator.store.store import Record

PoolName = Literal["model", "score"]
"""Workers that hold a model, and workers that only judge pictures."""
LossCause = Literal["death", "node", "oom", "hang"]
"""How a worker was lost: its process died, its machine did, the system killed it for memory, or it
was killed because nothing was heard of it."""


@dataclass(frozen=True)
class Task:
    """Stages for one worker, in the order in which they run.

    `after` is the model that must be recorded before the task can start; None if that is the base.
    `inputs` are materials that other tasks prepare and that must be recorded as well.
    `save` names the models (by digest) whose weights must stay in the store; `keep_checkpoints`
    leaves the last training state there too, so that a longer run can go on from it. `path_cost`
    is the cost of the longest chain of tasks that begins here, in training steps. `judges` are the
    scores of the task's pictures that other workers make: what they cannot judge is not drawn.
    """

    id: str
    stages: tuple[Stage, ...]
    after: Stage | None
    save: frozenset[str]
    keep_checkpoints: bool
    path_cost: float
    inputs: tuple[Stage, ...] = ()
    pool: PoolName = "model"
    judges: tuple[Stage, ...] = ()

    @property
    def waits_for(self) -> tuple[Stage, ...]:
        """Everything that must be recorded first."""
        return (*((self.after,) if self.after else ()), *self.inputs)


@dataclass(frozen=True)
class WorkOrder:
    """A task with all that a worker needs to do it: where the store and the logs are.

    `split` is the number of parts in which every batch is computed, because a whole one does not
    fit: training adds the parts' gradients up. Training state is stored every
    `checkpoint_every_s` seconds.
    """

    task: Task
    store: str
    log_path: str
    split: int = 1
    checkpoint_every_s: float = 600.0


@dataclass(frozen=True)
class StageStarted:
    """A worker began a stage."""

    task_id: str
    key: str


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is: `done` of `total` steps (or images), with the latest numbers."""

    task_id: str
    key: str
    done: int
    total: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class StageCommitted:
    """A stage's record is in the store. `ran` is False if it was there already."""

    task_id: str
    key: str
    record: Record
    ran: bool = True


@dataclass(frozen=True)
class StageFailed:
    """A stage raised."""

    task_id: str
    key: str
    failure: Failure


@dataclass(frozen=True)
class TaskEnded:
    """A task is over and its worker is free. `holds` is the model that the worker keeps warm."""

    task_id: str
    worker: str
    holds: str | None


@dataclass(frozen=True)
class WorkerLost:
    """A worker died with the task; another takes its place. The task may be submitted again."""

    task_id: str
    worker: str
    reason: str
    how: LossCause = "death"


@dataclass(frozen=True)
class TaskHandedBack:
    """A worker was asked to leave: it stored its training state and gives the task back."""

    task_id: str
    worker: str


@dataclass(frozen=True)
class TaskRetried:
    """A stage failed for want of something, and the task's rest is going to be tried again."""

    task_id: str
    reason: str


@dataclass(frozen=True)
class TaskWaits:
    """A task cannot start: no machine that there is now has what its worker needs."""

    task_id: str
    reason: str


TaskOver = TaskEnded | TaskHandedBack | WorkerLost
"""The last event of a task; the worker has nothing to do from then on."""
Event = (
    StageStarted | StageProgress | StageCommitted | StageFailed | TaskRetried | TaskWaits | TaskOver
)
