"""What is damaged: records, their objects, and the store's other documents."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.paths import (
    CHECKPOINT,
    CHECKPOINTS,
    FAILURES,
    HEADS,
    RECORDS,
    SWEEPS,
    json_path,
)
from orchestrator.store.quarantine import set_aside
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Damage:
    """A document that is not what it should be, and why; `folder` is where it was set aside.

    `key` is a record's or a failure's 16 digits, a sweep's or a head's name, a checkpoint's path.
    """

    key: str
    kind: str
    faults: tuple[str, ...]
    folder: str | None = None


def verify(store: Store, key: str, repair: bool) -> Damage | None:
    """Check a record and hash every object that it names; None if all is well, or it is gone.

    With `repair` a damaged record is set aside with its objects, so that its stage runs again.
    """
    found = store.look(key)
    if found is None:
        return None
    kind = found.value.kind if found.value is not None else "record"
    faults = store.faults(found.value) if found.value is not None else [found.fault or ""]
    if not faults:
        return None
    path = json_path(RECORDS, key)
    folder = set_aside(store.files, path, found.data, "; ".join(faults)) if repair else None
    return Damage(key, kind, tuple(faults), folder)


def others(store: Store) -> list[str]:
    """The paths of all documents but the records."""
    found = [
        f"{folder}/{name}"
        for folder in (SWEEPS, FAILURES, HEADS)
        for name in store.files.list(folder)
        if name.endswith(".json")
    ]
    # checkpoints/<key>/<phase>/<step>/…
    parts = {tuple(entry.path.split("/")[:5]) for entry in store.files.walk(CHECKPOINTS)}
    states = {"/".join(path[:4]) for path in parts if len(path) == 5}
    return sorted([*found, *(f"{state}/{CHECKPOINT}" for state in states)])


def verify_other(store: Store, path: str, repair: bool) -> Damage | None:
    """The same for another document; of a checkpoint also what it keeps beside itself."""
    folder, _, name = path.partition("/")
    found = store.look_at(path)
    if found is None:
        return None
    fault, name = found.fault, name.removesuffix(".json")
    if folder == CHECKPOINTS:
        state = path.removesuffix(f"/{CHECKPOINT}")
        fault, name = store.checkpoint_fault(state), state.partition("/")[2]
    if fault is None:
        return None
    moved = set_aside(store.files, path, found.data, fault) if repair else None
    return Damage(name, folder.removesuffix("s"), (fault,), moved)
