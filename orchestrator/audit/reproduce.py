"""What made a number, and whether it comes out again.

A trial's last edit, its pictures and its scores are made once more in an empty store beside copies
of what they rest on; then both sides are compared. Nothing in the real store is touched.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from orchestrator.audit.find_trial import Found
from orchestrator.core.artifacts import IMAGES, WEIGHTS, Machine
from orchestrator.core.errors import ResurgeError
from orchestrator.core.stage import Stage
from orchestrator.messages import Event, StageProgress, StageStarted
from orchestrator.plan.labels import stage_label
from orchestrator.plan.plan import Plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.results.measure import labelled_scores
from orchestrator.run.run import new_executor
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Record, Store


@dataclass(frozen=True)
class Difference:
    """A number as it was recorded and as it came out again."""

    metric: str
    recorded: float | None
    again: float | None

    @property
    def is_identical(self) -> bool:
        """Equal to the last bit."""
        return self.recorded == self.again


@dataclass(frozen=True)
class Reproduction:
    """What came out: every number, the pictures that are the same, and the machines."""

    differences: tuple[Difference, ...]
    same_pictures: int
    pictures: int
    moved: tuple[str, ...]
    again: tuple[str, ...]
    copied: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        """Whether every number is the same."""
        return all(difference.is_identical for difference in self.differences)


def reproduce(found: Found, from_base: bool, console: Console) -> Reproduction:
    """Make the trial again from its nearest ancestor, or from the base.

    Raises:
        ResurgeError: the trial has no score yet, or a stage failed this time.
    """
    final = found.planned.final
    if not final.scores or any(found.reader.record(score) is None for score in final.scores):
        raise ResurgeError(f"{found.label} has no score yet: resurge run {found.job.plan.name}")
    again = _made_again(found, from_base)
    under = dict.fromkeys(s for stage in again for s in stage.lineage if s not in again)
    with tempfile.TemporaryDirectory(prefix="resurge-") as folder:
        store = Store(folder)
        copied = [stage for stage in under if found.job.store.copy(stage, store)]
        plan = dataclasses.replace(found.job.plan, trials=(found.planned,), stages=(*under, *again))
        _run(found, plan, {stage.key for stage in under}, store, console)
        return _compare(found, again, copied, store)


def _made_again(found: Found, from_base: bool) -> list[Stage]:
    """The edits after the model to begin from, the pictures and the scores, in order."""
    final = found.planned.final
    edits: list[Stage] = []
    for stage in final.model.ancestry():
        record = found.reader.record(stage)
        has_weights = record is not None and WEIGHTS in record.objects
        if stage.kind == "base" or (has_weights and not from_base and stage is not final.model):
            break
        edits.insert(0, stage)
    materials = [s for e in edits for i in e.inputs.values() for s in i.lineage if from_base]
    prepared = [stage for stage in materials if stage.kind == "prepare"]
    return list(dict.fromkeys([*prepared, *edits, *final.evaluation()]))


def _run(found: Found, plan: Plan, done: set[str], store: Store, console: Console) -> None:
    """Run what is not in `done` on one worker, with as many threads as there were."""
    first = found.reader.record(found.planned.final.sample)
    threads = first.provenance["threads"] if first else "auto"
    tasks = make_tasks(plan, done, keep=())
    with (
        new_executor(found.job.sweep.resources, console, workers=1, threads=threads) as executor,
        console.status("making it again") as status,
    ):
        labels = {stage.key: stage_label(stage) for stage in plan.stages}

        def tell(event: Event) -> None:
            if isinstance(event, StageStarted):
                status.update(labels[event.key])
            elif isinstance(event, StageProgress):
                status.update(f"{labels[event.key]}: {event.done} of {event.total}")

        log_folder = found.job.home.logs(f"{plan.name}-reproduce")
        outcome = Scheduler(tasks, done, executor, store, log_folder, tell).run()
    if not outcome.ok:
        [(key, failure), *_] = outcome.failed.items()
        raise ResurgeError(f"{key} failed: {failure.message}; see {failure.log_path}")


def _compare(
    found: Found, again: Sequence[Stage], copied: Sequence[Stage], store: Store
) -> Reproduction:
    final = found.planned.final
    looked_at = final.evaluation()[0]  # its pictures, or where none are drawn its first score
    before, after = found.reader.record(looked_at), store.get(looked_at)
    assert before is not None and after is not None  # a trial that is scored has both
    pairs = []
    if final.is_drawn:
        pairs = list(zip(_pictures(found.job.store, before), _pictures(store, after), strict=True))
    differences = []
    for label, stage in labelled_scores(final):
        then, now = found.reader.record(stage), store.get(stage)
        old, new = (dict(record.metrics) if record else {} for record in (then, now))
        for name in sorted(old.keys() | new.keys()):
            differences.append(Difference(f"{label}.{name}", old.get(name), new.get(name)))
    # What of machine and versions is not what it was.
    versions = [record.provenance.get("versions", {}) for record in (before, after)]
    was: dict[str, Any] = {**before.provenance, **versions[0]}
    is_now: dict[str, Any] = {**after.provenance, **versions[1]}
    moved = [
        f"{name} {was.get(name)} -> {is_now.get(name)}"
        for name in (*Machine.__annotations__, *sorted(versions[0]))
        if was.get(name) != is_now.get(name)
    ]
    return Reproduction(
        differences=tuple(differences),
        same_pictures=sum(one == other for one, other in pairs),
        pictures=len(pairs),
        moved=tuple(moved),
        again=tuple(map(stage_label, again)),
        copied=tuple(map(stage_label, copied)),
    )


def _pictures(store: Store, record: Record) -> list[bytes]:
    with store.object(record, IMAGES.name) as path:
        return [row.png for row in IMAGES.read(path)]
