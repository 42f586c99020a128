"""Leases: heads that share a store do a piece of work once.

    heads/<id>.json                 a head that runs a sweep: who it is, its beat, what it does
    leases/<unit>/<head id>         a head's claim of a unit of work (a trajectory, a model, …)

A head that is refused a unit waits for the records of the other. Should two heads ever do the same
stage, the first record wins.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.claims import Claims, beating
from orchestrator.core.errors import StoreError
from orchestrator.core.liveness import BEAT_S, SILENT_S, Process, Sign, Watch
from orchestrator.messages import Task
from orchestrator.store.paths import HEADS, LEASES, json_path
from orchestrator.store.patience import Patience
from orchestrator.store.sealed import unseal
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Head(Sign):
    """What a head says of itself.

    `wants` is the number of workers that it could use now; `running` its stages under way, as JSON
    values {key, worker, done, total}.
    """

    sweep: str
    priority: float
    wants: int = 0
    running: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        own = {name: getattr(self, name) for name in ("sweep", "priority", "wants")}
        return {**super().to_json(), **own, "running": list(self.running)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Head:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: it is not what a head says of itself.
        """
        return cls(
            Process.from_json(values),
            beat=int(values["beat"]),
            at_s=float(values["at_s"]),
            sweep=values["sweep"],
            priority=float(values["priority"]),
            wants=int(values["wants"]),
            running=values["running"],
        )


def read_heads(store: Store) -> list[Head]:
    """Every head that has not said goodbye; dead ones too.

    What cannot be read is nobody: a head that lives writes its file again with the next beat.
    """
    found = []
    for path in [f"{HEADS}/{name}" for name in store.files.list(HEADS)]:
        with suppress(ValueError, KeyError, TypeError):
            data = store.files.read_bytes(path)
            if data is not None:
                found.append(Head.from_json(unseal(path, data)))
    return found


def live_heads(store: Store, sweep: str | None = None) -> list[Head]:
    """The heads that are alive, of one sweep or of all.

    One on another machine counts as alive if its last beat is not older than SILENT_S by this
    machine's clock: a single look cannot see whether its beat goes on.
    """
    watch, now_s = Watch(), time.time()

    def is_alive(head: Head) -> bool:
        verdict = watch.look(head)
        return verdict == "alive" or (verdict == "unsure" and now_s - head.at_s <= SILENT_S)

    return [h for h in read_heads(store) if sweep in (None, h.sweep) and is_alive(h)]


def units(task: Task) -> list[str]:
    """What a task is leased by: its trajectories, models and materials, as 16 digits."""
    if task.pool == "score":
        return [task.id]
    names = (
        stage.digest if stage.kind == "prepare" else stage.model.trajectory or stage.model.digest
        for stage in task.stages
    )
    return list(dict.fromkeys(name[:16] for name in names))


class Leases(Claims):
    """One head's claims of units. Used by the scheduler's thread; the beat has a thread of its own.

    Args:
        store: where they are.
        sweep: the sweep that the head runs.
        priority: how much of the workers it should have, beside others.
        watch: judges the other heads.
        now_s: the time of day.
    """

    def __init__(
        self,
        store: Store,
        sweep: str,
        priority: float = 1.0,
        watch: Watch | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(watch, now_s)
        self.sweep, self.priority = sweep, priority
        self.wants = 0
        self.running: Collection[Mapping[str, Any]] = ()
        self._files = store.files
        # A beat that waits for a store that is away comes too late anyway.
        self._beats = Store(store.location, Patience(BEAT_S / 2))
        self._store = store
        self._held: Counter[str] = Counter()
        self._beating = ExitStack()

    def __enter__(self) -> Leases:
        def beat() -> None:
            # If the store is away, the scheduler's own calls meet the same trouble, and tell of it.
            with suppress(StoreError):
                self.beat()

        self.beat()
        self._beating.enter_context(beating(beat))
        return self

    def __exit__(self, *_: Any) -> None:
        self._beating.close()
        self._remove(self._held, self.process.id)
        self._files.delete(json_path(HEADS, self.process.id))

    def beat(self) -> None:
        """Tell the others that this head is alive, and what it is doing."""
        self._beat += 1
        head = Head(
            self.process,
            self._beat,
            self._now_s(),
            self.sweep,
            self.priority,
            self.wants,
            tuple(self.running),
        )
        self._beats.put_json(json_path(HEADS, self.process.id), head.to_json())

    def claim(self, task: Task) -> bool:
        """Own all of the task's units; if another head has one of them, own none."""
        if self._take([unit for unit in units(task) if unit not in self._held]):
            return False
        self._held.update(units(task))
        return True

    def release(self, task: Task) -> None:
        """Own the task's units no more."""
        for unit in units(task):
            self._held[unit] -= 1
            if self._held[unit] <= 0:
                del self._held[unit]
                self._remove([unit], self.process.id)

    def others(self) -> list[Head]:
        """The other heads that are alive, or may be."""
        others = [head for head in read_heads(self._store) if head.process.id != self.process.id]
        return [head for head in others if self._watch.look(head) != "dead"]

    def _write(self, things: Iterable[str]) -> None:
        for unit in things:
            self._files.write(f"{LEASES}/{unit}/{self.process.id}", "")

    def _remove(self, things: Iterable[str], owner: str) -> None:
        for unit in things:
            self._files.delete(f"{LEASES}/{unit}/{owner}")

    def _claimed(self, things: Iterable[str]) -> Mapping[str, Sign | None]:
        owners = {owner for unit in things for owner in self._files.list(f"{LEASES}/{unit}")}
        owners -= {self.process.id}  # most often that is all, and no head need be read
        heads = {head.process.id: head for head in read_heads(self._store)} if owners else {}
        return {owner: heads.get(owner) for owner in owners}
