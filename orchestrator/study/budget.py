"""What a study's trials cost, for budgets in optimiser steps and in hours."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.core.errors import ResurgeError
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan
from orchestrator.store.store import Record, Store
from orchestrator.study.points import Points
from orchestrator.study.tried import Tried, counted
from orchestrator.sweep.search import SearchSettings

SECONDS_AN_HOUR = 3600


class Spending:
    """What is spent of a study's budget, each stage and each trajectory counted once.

    What the store had before counts like what was run: a budget means the same for whoever goes on
    with a search. Steps are those of fine-tuning, counted when they are asked for; hours are those
    of GPUs on every stage that has a record, or of workers where no stage had a GPU.
    """

    def __init__(self, settings: SearchSettings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._longest: dict[str, int] = {}
        self._waiting: dict[str, Stage] = {}
        self._seconds: dict[str, tuple[float, float]] = {}

    @property
    def is_limited(self) -> bool:
        """Whether anything but the number of trials is."""
        return self._settings.steps is not None or self._settings.gpu_hours is not None

    def add(self, plan: Plan) -> None:
        """These stages were asked for."""
        for stage in plan.stages:
            if stage.trajectory:
                longest = self._longest.get(stage.trajectory, 0)
                self._longest[stage.trajectory] = max(longest, stage.steps)
            if stage.kind != "base" and stage.key not in self._seconds:
                self._waiting[stage.key] = stage

    @property
    def steps(self) -> int:
        """Optimiser steps of fine-tuning."""
        return sum(self._longest.values())

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs, as far as stages have records; of workers if none had a GPU."""
        for key, stage in list(self._waiting.items()):
            if (record := self._store.get(stage)) is not None:
                self._seconds[key] = (record.seconds, gpus_of(record))
                del self._waiting[key]
        on_gpus = sum(seconds * gpus for seconds, gpus in self._seconds.values())
        return (on_gpus or sum(seconds for seconds, _ in self._seconds.values())) / SECONDS_AN_HOUR

    @property
    def is_over(self) -> bool:
        """Whether no new trial is to begin."""
        steps, hours = self._settings.steps, self._settings.gpu_hours
        if steps is not None and self.steps >= steps:
            return True
        return hours is not None and self.gpu_hours >= hours


def gpus_of(record: Record) -> float:
    """How many GPUs a stage's worker had; one, if it had any, where the record is older than that
    number.
    """
    device = record.provenance.get("device", "cpu")
    return float(record.provenance.get("gpus", device != "cpu"))


def spending(points: Points, trials: Iterable[Tried], store: Store) -> Spending:
    """What these trials have cost, at every step count at which they were measured."""
    spent = Spending(points.search.settings, store)
    if not spent.is_limited:
        return spent
    for one in counted(trials):
        for steps in (*one.curve, *([None] if one.state in ("done", "failed") else [])):
            try:
                spent.add(points.measuring(one.point, steps))
            except ResurgeError:  # its settings do not go together: it failed at once
                break
    return spent
