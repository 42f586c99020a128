"""What a store holds, and which sweep uses it: what `resurge store du` shows and `gc` goes by."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator.core.errors import ResurgeError, SweepError
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.stored import StoredSweep, UnreadablePlan
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
)
from orchestrator.store.record import LaterRecord, Record
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

READERS = 8
"""Records read at a time: a bucket answers each in tens of milliseconds."""


@dataclass(frozen=True)
class Amount:
    """A number of files and their bytes."""

    files: int = 0
    size_bytes: int = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Amount:
        """The sum of some files."""
        sizes = [entry.size_bytes for entry in entries]
        return cls(len(sizes), sum(sizes))

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.files + other.files, self.size_bytes + other.size_bytes)


@dataclass(frozen=True)
class KnownSweep:
    """A sweep that was run on the store, and what it keeps; where its plan is not known, `plan` is
    None and `why` says why.
    """

    name: str
    keep: frozenset[str]
    plan: Plan | None
    why: str = ""

    @property
    def keys(self) -> frozenset[str]:
        """The 16-digit keys of its stages, as far as they can be planned."""
        return frozenset(stage.key for stage in self.plan.stages) if self.plan else frozenset()


class Inventory:
    """A store as it was when it was looked at; objects are listed before the records are read, so
    that what is committed meanwhile is never taken for unreferenced.
    """

    def __init__(self, store: Store, home: Home) -> None:
        self.store, self.home = store, home
        self.objects: dict[str, list[Entry]] = by_folder(store.files.walk(OBJECTS))
        self.records: dict[str, Record] = {}
        self.unreadable: dict[str, str] = {}
        self.record_bytes: dict[str, int] = {}
        for key, size_bytes, found in read_records(store):
            self.record_bytes[key] = size_bytes
            if isinstance(found, Record):
                self.records[key] = found
            else:
                self.unreadable[key] = found

    @cached_property
    def sweeps(self) -> list[KnownSweep]:
        """Every sweep that was run on the store."""
        return [known_sweep(self.store, name, self.home) for name in self.store.sweeps()]

    @cached_property
    def named(self) -> set[str]:
        """The paths that some record names."""
        return {blob.path for r in self.records.values() for blob in r.objects.values()}

    @cached_property
    def objects_of(self) -> dict[str, list[Entry]]:
        """By 16-digit key its objects, those of attempts that were killed too."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for folder, entries in self.objects.items():
            found[folder.partition("-")[0]] += entries
        return dict(found)

    def unreferenced(self) -> list[Entry]:
        """Objects that no record names, nor a record that cannot be read may name."""
        return [
            entry
            for folder, entries in self.objects.items()
            if folder.partition("-")[0] not in self.unreadable
            for entry in entries
            if entry.path not in self.named
        ]

    def amount(self, keys: Iterable[str]) -> Amount:
        """The records of some stages with the files that they name."""
        total = Amount()
        for key in keys:
            if key in self.records:
                blobs = self.records[key].objects.values()
                total += Amount(1, self.record_bytes[key])
                total += Amount(len(blobs), sum(blob.size_bytes for blob in blobs))
        return total


@dataclass(frozen=True)
class Use:
    """What `du` tells. `sweeps` has all that a sweep uses, `own` what no other sweep does."""

    location: str
    kinds: Mapping[str, Amount]
    sweeps: Mapping[str, Amount]
    own: Mapping[str, Amount]
    rest: Mapping[str, Amount]
    unplanned: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> Amount:
        """Everything."""
        return sum((*self.kinds.values(), *self.rest.values()), Amount())

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""

        def values(amounts: Mapping[str, Amount]) -> dict[str, Any]:
            return {n: {"files": a.files, "bytes": a.size_bytes} for n, a in amounts.items()}

        return {
            "store": self.location,
            "kinds": values(self.kinds),
            "sweeps": values(self.sweeps),
            "own": values(self.own),
            "rest": values(self.rest),
            "unplanned": dict(self.unplanned),
            "total": values({"total": self.total})["total"],
        }


def use_of(store: Store, home: Home) -> Use:
    """Bytes and counts by kind of stage, by sweep, and of what is no stage."""
    found = Inventory(store, home)
    kinds: dict[str, list[str]] = defaultdict(list)
    for key, record in found.records.items():
        kinds[record.kind].append(key)
    users = [known for known in found.sweeps if known.plan is not None]
    folders = (CHECKPOINTS, FAILURES, SWEEPS, HEADS, LEASES, SCRATCH, QUARANTINE)
    rest = {folder: Amount.of(store.files.walk(folder)) for folder in folders}
    bad = Amount(len(found.unreadable), sum(found.record_bytes[k] for k in found.unreadable))
    rest |= {"unreferenced objects": Amount.of(found.unreferenced()), "unreadable records": bad}
    return Use(
        location=store.location,
        kinds={kind: found.amount(keys) for kind, keys in sorted(kinds.items())},
        sweeps={known.name: found.amount(known.keys) for known in users},
        own={known.name: found.amount(own_keys(known, users)) for known in users},
        rest={name: amount for name, amount in rest.items() if amount.files},
        unplanned={known.name: known.why for known in found.sweeps if known.plan is None},
    )


def own_keys(known: KnownSweep, everyone: Iterable[KnownSweep]) -> frozenset[str]:
    """The keys that no other sweep uses."""
    others = (other.keys for other in everyone if other.name != known.name)
    return known.keys.difference(*others)


def by_folder(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Files by the second part of their path: under objects/, say, by their stage's folder."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.path.split("/")[1]].append(entry)
    return dict(found)


def read_records(
    store: Store, keys: Collection[str] | None = None
) -> Iterator[tuple[str, int, Record | str]]:
    """By record its key, its size in bytes, and itself or what is wrong; nothing is changed."""

    def read(key: str) -> tuple[str, int, Record | str] | None:
        try:
            found = store.look(key)
        except LaterRecord as error:
            entry = store.files.info(json_path(RECORDS, key))
            return key, entry.size_bytes if entry else 0, str(error)
        if found is None:
            return None  # deleted since it was listed
        return key, len(found.data or b""), found.value or found.fault or ""

    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(read, sorted(store.keys() if keys is None else keys))
        yield from (one for one in found if one is not None)


def known_sweep(store: Store, name: str, home: Home) -> KnownSweep:
    """A sweep of the store with the plan by which it was run; a search's is all it asked for."""
    keep: frozenset[str] = frozenset()
    try:
        values = store.sweep(name)
        if values is None:
            return KnownSweep(name, keep, None, "it was deleted meanwhile")
        known = StoredSweep.from_json(name, values)
        keep = frozenset(known.values.get("keep", ()))
        plan = known.read_plan()
        if known.search_block is not None:
            plan = _asked_plan(known, home, plan)
        plan = plan or make_plan(parse(json.dumps(known.values)))
    except (ResurgeError, UnreadablePlan) as error:
        return KnownSweep(name, keep, None, str(error))
    if not plan.trials:
        return KnownSweep(name, keep, None, "its studies are not here: set RESURGE_STUDIES")
    return KnownSweep(name, keep, plan)


def _asked_plan(known: StoredSweep, home: Home, stored: Plan | None) -> Plan:
    """What its studies say now, and what it had asked for when it was last run."""
    from orchestrator.study.points import PointPlanner, Points
    from orchestrator.study.stored_points import StoredPoints
    from orchestrator.study.studies import read_studies
    from orchestrator.study.worst_case import asked_plan, merged

    points: Points
    try:
        points = PointPlanner(parse(json.dumps(known.values)))
    except SweepError:
        if stored is None or known.points is None:
            raise
        points = StoredPoints(stored, known.points)
    # Without its studies nothing is known of what it asked for since.
    plan = asked_plan(points, read_studies(points, home.studies_uri(known)))
    return merged([plan, stored]) if stored is not None and plan.trials else plan
