"""Looking after a store: what can be deleted without loss, and what is damaged.

Nothing is deleted that a record names, unless a sweep or weights are given up by name; and nothing
that is younger than the limit, because somebody may be writing it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.core.artifacts import WEIGHTS
from orchestrator.core.errors import StoreError
from orchestrator.home import Home
from orchestrator.store.paths import (
    CHECKPOINTS,
    FAILURES,
    HEADS,
    LEASES,
    OBJECTS,
    QUARANTINE,
    RECORDS,
    SCRATCH,
    SWEEPS,
    Entry,
    json_path,
    name_in,
)
from orchestrator.store.store import Store
from orchestrator.upkeep.inventory import Inventory, by_folder, own_keys, read_records

DAY_S = 86400.0
ALIVE_S = 600.0
"""A head says every few seconds that it is alive; for this long it is believed to be."""
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}


@dataclass(frozen=True)
class Waste:
    """Something to delete: why, the files, and the record that is to be written without them."""

    what: str
    entries: tuple[Entry, ...]
    key: str | None = None
    drop: str | None = None

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)


@dataclass(frozen=True)
class Limits:
    """What `gc` may take beside what nobody needs.

    `older_than_s`: nothing younger. `quarantine`: also what was set aside. `sweep`: also the
    records and objects that only that sweep uses. `weights`: also the weights of models, which are
    made again when they are needed.
    """

    older_than_s: float = DAY_S
    quarantine: bool = False
    sweep: str | None = None
    weights: bool = False


def seconds(text: str) -> float:
    """A duration such as 90s, 30m, 12h or 2d, in seconds.

    Raises:
        StoreError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise StoreError(f"a duration is a number with s, m, h or d, as in 12h; but got {text!r}")
    return float(found[1]) * _UNITS_S[found[2]]


def find_waste(
    store: Store, home: Home, limits: Limits, now_s: Callable[[], float] = time.time
) -> list[Waste]:
    """What could be deleted, by the limits; nothing is changed.

    Raises:
        StoreError: the sweep is unknown, runs, or cannot be told from the others.
    """
    finder = _Finder(Inventory(store, home), limits, now_s() - limits.older_than_s)
    return [waste for waste in finder.all() if waste.entries]


class _Finder:
    def __init__(self, found: Inventory, limits: Limits, before_s: float) -> None:
        self.found, self.limits, self.before_s = found, limits, before_s
        self.files = found.store.files

    def all(self) -> Iterator[Waste]:
        dropped: frozenset[str] = frozenset()
        if self.limits.sweep is not None:
            dropped = self.keys_of_sweep(self.limits.sweep)
            yield from self.sweep(self.limits.sweep, dropped)
        if self.limits.weights:
            yield from self.weights(dropped)
        yield from self.groups("unreferenced objects", by_folder(self.found.unreferenced()))
        yield from self.groups("scratch", by_folder(self.files.walk(SCRATCH)))
        yield from self.checkpoints()
        yield from self.claims()
        for folder in (RECORDS, SWEEPS, FAILURES, HEADS):
            hidden = [e for e in self.files.walk(folder) if "/." in e.path]
            yield Waste("half-written files", self.old(hidden))
        if self.limits.quarantine:
            yield from self.groups("quarantine", by_folder(self.files.walk(QUARANTINE)))

    def old(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        return tuple(entry for entry in entries if entry.changed_s < self.before_s)

    def is_old(self, entries: Sequence[Entry]) -> bool:
        return len(self.old(entries)) == len(entries)

    def groups(self, what: str, groups: dict[str, list[Entry]]) -> Iterator[Waste]:
        """Each group as a whole, where its youngest file is old."""
        for entries in groups.values():
            if self.is_old(entries):
                yield Waste(what, tuple(entries))

    def checkpoints(self) -> Iterator[Waste]:
        """Training states of what is finished, or of what no sweep asks for any more."""
        states = by_folder(self.files.walk(CHECKPOINTS))
        if any(known.plan is None for known in self.found.sweeps):
            # What a sweep that cannot be planned goes on from is not known.
            states = {key: state for key, state in states.items() if key in self.found.records}
        wanted: set[str] = set()
        for known in self.found.sweeps:
            if known.plan is not None:
                keeps = "checkpoints" in known.keep
                wanted |= {
                    (stage.trajectory or stage.digest)[:16]
                    for stage in known.plan.stages
                    if stage.key not in self.found.records or (keeps and stage.trajectory)
                }
        yield from self.groups(
            "checkpoints", {key: state for key, state in states.items() if key not in wanted}
        )

    def claims(self) -> Iterator[Waste]:
        """Heads that have not said goodbye, and claims of heads that are not there."""
        heads = [entry for entry in self.files.walk(HEADS) if "/." not in entry.path]
        gone = self.old(heads)
        alive = {name_in(e.path) for e in heads if e not in gone}
        claims = [e for e in self.files.walk(LEASES) if name_in(e.path) not in alive]
        yield Waste("claims of dead heads", (*gone, *self.old(claims)))

    def keys_of_sweep(self, name: str) -> frozenset[str]:
        sweeps = {known.name: known for known in self.found.sweeps}
        if name not in sweeps:
            names = ", ".join(sweeps) or "none"
            raise StoreError(f"no sweep of this store is called {name!r}; there are: {names}")
        young_s = self.before_s + self.limits.older_than_s - ALIVE_S
        for entry in self.files.walk(HEADS):
            is_young = entry.changed_s > young_s and "/." not in entry.path
            head = self.found.store.read_json(entry.path) if is_young else None
            if head is not None and head.get("sweep") == name:
                raise StoreError(f"sweep {name!r} is running: stop it first (resurge cancel)")
        for known in sweeps.values():
            if known.plan is None:
                raise StoreError(
                    f"what only {name!r} uses is not known, because {known.name!r} cannot be "
                    f"planned here: {known.why}"
                )
        return own_keys(sweeps[name], sweeps.values()) & self.found.records.keys()

    def sweep(self, name: str, keys: frozenset[str]) -> Iterator[Waste]:
        """Each record before its objects: without it nobody looks for them."""
        records = {entry.path: entry for entry in self.files.walk(RECORDS)}
        is_whole = True
        for key in sorted(keys):
            paths = {blob.path for blob in self.found.records[key].objects.values()}
            blobs = [e for e in self.found.objects_of.get(key, ()) if e.path in paths]
            record = records.get(json_path(RECORDS, key))
            entries = [*([record] if record else []), *blobs]
            is_whole = is_whole and self.is_old(entries)
            if self.is_old(entries):
                yield Waste(f"sweep {name}", tuple(entries))
        entry = self.files.info(json_path(SWEEPS, name))
        if is_whole and entry is not None:
            yield Waste(f"sweep {name}", self.old([entry]))

    def weights(self, dropped: frozenset[str]) -> Iterator[Waste]:
        """Weights of models whose records stay."""
        for key, record in self.found.records.items():
            blob = record.objects.get(WEIGHTS)
            is_model = record.kind in ("unlearn", "finetune", "merge")
            if blob is not None and is_model and key not in dropped:
                entries = [e for e in self.found.objects_of.get(key, ()) if e.path == blob.path]
                yield Waste("weights", self.old(entries), key=key, drop=WEIGHTS)


def delete(store: Store, waste: Waste) -> int:
    """Delete it, unless a record names it by now; the bytes that were freed."""
    if waste.key is not None and waste.drop is not None:
        record = store.record(waste.key)
        if record is not None and waste.drop in record.objects:
            path = json_path(RECORDS, waste.key)
            store.files.write(path, record.without(waste.drop).to_text())
    freed_bytes = 0
    for entry in waste.entries:
        if not _is_named(store, entry.path):
            store.files.delete(entry.path)
            freed_bytes += entry.size_bytes
    store.files.prune({entry.path.rpartition("/")[0] for entry in waste.entries})
    return freed_bytes


def _is_named(store: Store, path: str) -> bool:
    """Whether the record that could name an object does; one that cannot be read might."""
    folder, _, rest = path.partition("/")
    if folder != OBJECTS:
        return False
    key = rest.partition("-")[0]
    for _, _, found in read_records(store, [key]):
        return isinstance(found, str) or path in {blob.path for blob in found.objects.values()}
    return False
