"""What to do about a failure, by its cause: whose fault it is decides who pays.

| cause | what happens |
|---|---|
| a worker's machine died, or was asked to leave | the task runs elsewhere, free of charge |
| a worker's process died | the same, but a task that takes MAX_LOSSES workers with it is failed |
| memory | a whole GPU; then batches in 2, then 4 parts; then failed with advice |
| the store is away, or its disk is full | again after a pause; then failed with advice |
| silence | its worker is killed; once more elsewhere; then failed with advice |
| a number that is not finite, in a loss, weights or pictures | failed; a curve is kept |
| data or a model that are wrong | failed at once, with what to mend |
| a plug-in's error | failed at once, with the log's path |
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orchestrator.core.artifacts import Cause
from orchestrator.messages import StageFailed, WorkerLost

MAX_LOSSES = 3
"""A task that took this many workers with it is failed, not tried again."""
MAX_MACHINES = 20
"""Machines come and go for nobody's fault; a task that outlives this many is suspicious."""
MAX_HANGS = 2
MAX_STORAGE = 3
STORAGE_PAUSE_S = 30.0
SPLITS = (2, 4)
ADVICE: dict[Cause, str] = {
    "bug": "read the log; a repaired plug-in runs again with the same command",
    "input": "mend what the message names; the same command goes on from there",
    "nan": "lower the learning rate or the method's strength, warm up, or use fp32; the curve of a "
    "training is kept",
    "oom": "lower `batch_size` (raise `accumulation` by as much), switch `gradient_checkpointing` "
    "on, or use workers with more memory",
    "hang": "read the log; raise `resources.stage_timeout_min` if the stage is only slow",
    "storage": "free space (`resurge store gc`) or bring the store back; the same command goes on",
    "lost": "read the log and the machine's own for what kills the process; the same command "
    "tries again",
}


@dataclass(frozen=True)
class Again:
    """Try the task's rest again, after a pause; how is in the task's history."""

    why: str
    pause_s: float = 0.0


@dataclass(frozen=True)
class Final:
    """Fail, for this cause."""

    cause: Cause
    message: str


@dataclass
class History:
    """What a task went through, and so how it is run: batches in `split` parts, on a whole GPU."""

    lost: Counter[str] = field(default_factory=Counter)
    split: int = 1
    has_whole_gpu: bool = False
    storage: int = 0


class Policy:
    """Decides by task; remembers what each went through.

    Args:
        shares_gpu: whether workers have less than a GPU each, so that a whole one would be more.
    """

    def __init__(self, shares_gpu: bool = False) -> None:
        self._shares_gpu = shares_gpu
        self._histories: dict[str, History] = {}

    def history(self, task_id: str) -> History:
        """What the task went through so far."""
        return self._histories.setdefault(task_id, History())

    def on_failure(self, event: StageFailed) -> Again | Final:
        """A stage raised."""
        cause, message = event.failure.cause, event.failure.message
        if cause == "oom":
            return self._more_memory(event.task_id, message)
        if cause != "storage":
            return Final(cause, message)
        history = self.history(event.task_id)
        history.storage += 1
        if history.storage >= MAX_STORAGE:
            return Final(cause, message)
        return Again(f"{message}; again after a pause", STORAGE_PAUSE_S)

    def on_loss(self, event: WorkerLost) -> Again | Final:
        """A worker died with the task."""
        history = self.history(event.task_id)
        history.lost[event.how] += 1
        count = history.lost[event.how]
        if event.how == "oom":
            return self._more_memory(event.task_id, event.reason)
        if event.how == "hang":
            cause: Cause = "hang"
            limit, what = MAX_HANGS, f"{event.reason}, on {MAX_HANGS} workers"
        elif event.how == "node":
            cause, limit = "lost", MAX_MACHINES
            what = f"{event.reason}; the task lost {MAX_MACHINES} machines"
        else:
            cause, limit = "lost", MAX_LOSSES
            what = f"{event.reason}; the task lost {MAX_LOSSES} workers and is not tried again"
        return Final(cause, what) if count >= limit else Again(event.reason)

    def _more_memory(self, task_id: str, message: str) -> Again | Final:
        history = self.history(task_id)
        if self._shares_gpu and not history.has_whole_gpu:
            history.has_whole_gpu = True
            return Again(f"{message}; again with a whole GPU")
        for split in SPLITS:
            if split > history.split:
                history.split = split
                return Again(f"{message}; again with batches in {split} parts")
        tried = [*(["a whole GPU"] if history.has_whole_gpu else []), f"{SPLITS[-1]} parts a batch"]
        return Final("oom", f"{message}; not even with {' and '.join(tried)}")
