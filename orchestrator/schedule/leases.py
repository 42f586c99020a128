"""Leases: heads that share a store do a piece of work once.

    heads/<id>.json                 a head that runs a sweep: who it is, its beat, what it does
    leases/<unit>/<head id>         a head's claim of a unit of work (a trajectory, a model, …)

A head that wants a unit writes its claim, then lists the unit's claims: if it is alone, the unit
is its own; if not, it withdraws and waits for the records of the other. Of two that come at once
at most one finds itself alone, whatever the store, because listings show what was written before.
A dead head's claims are removed. Should two heads ever do the same stage, the first record wins.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.errors import StoreError
from orchestrator.core.liveness import BEAT_S, SILENT_S, Process, Watch
from orchestrator.core.stage import Stage
from orchestrator.messages import Task
from orchestrator.store.patience import Patience
from orchestrator.store.store import Store


def live_heads(store: Store, sweep: str | None = None) -> list[Head]:
    """The heads that are alive, of one sweep or of all.

    One on another machine counts as alive if its last beat is not older than SILENT_S by this
    machine's clock: a single look cannot see whether its beat goes on.
    """
    watch, now_s = Watch(), time.time()

    def is_alive(head: Head) -> bool:
        verdict = watch.look(head.process, head.beat, head.at_s)
        return verdict == "alive" or (verdict == "unsure" and now_s - head.at_s <= SILENT_S)

    return [h for h in read_heads(store) if sweep in (None, h.sweep) and is_alive(h)]


HEADS, LEASES = "heads", "leases"


@dataclass(frozen=True)
class Head:
    """What a head says of itself.

    `wants` is the number of workers that it could use now; `running` its stages under way, as JSON
    values {key, worker, done, total}.
    """

    process: Process
    sweep: str
    priority: float
    beat: int
    at_s: float
    wants: int = 0
    running: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        own = {name: getattr(self, name) for name in ("sweep", "priority", "beat", "at_s", "wants")}
        return {**self.process.to_json(), **own, "running": list(self.running)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Head:
        """The inverse of `to_json`."""
        own = {name: values[name] for name in ("sweep", "priority", "beat", "at_s", "wants")}
        return cls(Process.from_json(values), running=values["running"], **own)


def read_heads(store: Store) -> list[Head]:
    """Every head that has not said goodbye; dead ones too.

    What cannot be read is nobody: a head that lives writes its file again with the next beat.
    """
    found = []
    for name in store.files.list(HEADS):
        with suppress(ValueError, KeyError, TypeError):
            text = store.files.read(f"{HEADS}/{name}")
            if text is not None:
                found.append(Head.from_json(json.loads(text)))
    return found


def units(task: Task) -> list[str]:
    """What a task is leased by: its trajectories, models and materials, as 16 digits."""
    if task.pool == "score":
        return [task.id]
    return list(dict.fromkeys(_unit(stage)[:16] for stage in task.stages))


def _unit(stage: Stage) -> str:
    if stage.kind == "prepare":
        return stage.digest
    return stage.model.trajectory or stage.model.digest


class Leases:
    """One head's claims. Used by the scheduler's thread; the beat has a thread of its own.

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
        self.process = Process.here()
        self.sweep, self.priority = sweep, priority
        self.wants = 0
        self.running: Sequence[Mapping[str, Any]] = ()
        self._files = store.files
        # A beat that waits for a store that is away comes too late anyway.
        self._beats = Store(store.location, Patience(BEAT_S / 2)).files
        self._store = store
        self._watch = watch or Watch()
        self._now_s = now_s
        self._beat = 0
        self._held: Counter[str] = Counter()
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Leases:
        self.beat()
        self._beating = threading.Thread(target=self._beat_until_stop, daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        for unit in list(self._held):
            self._drop(unit, self.process.id)
        self._files.delete(f"{HEADS}/{self.process.id}.json")

    def beat(self) -> None:
        """Tell the others that this head is alive, and what it is doing."""
        self._beat += 1
        head = Head(
            self.process,
            self.sweep,
            self.priority,
            self._beat,
            self._now_s(),
            self.wants,
            tuple(self.running),
        )
        self._beats.write(f"{HEADS}/{self.process.id}.json", json.dumps(head.to_json()))

    def claim(self, task: Task) -> bool:
        """Own all of the task's units; if another head has one of them, own none."""
        wanted = [unit for unit in units(task) if unit not in self._held]
        claimed: list[str] = []
        for unit in wanted:
            self._files.write(f"{LEASES}/{unit}/{self.process.id}", "")
            claimed.append(unit)
            if self._is_anothers(unit):
                for mine in claimed:
                    self._drop(mine, self.process.id)
                return False
        self._held.update(units(task))
        return True

    def release(self, task: Task) -> None:
        """Own the task's units no more."""
        for unit in units(task):
            self._held[unit] -= 1
            if self._held[unit] <= 0:
                del self._held[unit]
                self._drop(unit, self.process.id)

    def others(self) -> list[Head]:
        """The other heads that are alive, or may be."""
        return [head for head in self._heads() if self._look(head) != "dead"]

    def _is_anothers(self, unit: str) -> bool:
        claims = set(self._files.list(f"{LEASES}/{unit}")) - {self.process.id}
        if not claims:
            return False
        alive = {head.process.id for head in self.others()}
        for dead in claims - alive:
            self._drop(unit, dead)
        return not claims.isdisjoint(alive)

    def _heads(self) -> Iterable[Head]:
        return (h for h in read_heads(self._store) if h.process.id != self.process.id)

    def _look(self, head: Head) -> str:
        return self._watch.look(head.process, head.beat, head.at_s)

    def _drop(self, unit: str, head_id: str) -> None:
        self._files.delete(f"{LEASES}/{unit}/{head_id}")

    def _beat_until_stop(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except StoreError:
                continue  # the scheduler's own calls meet the same trouble, and tell of it
