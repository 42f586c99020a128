"""Objects that are not what their records say."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.paths import RECORDS, json_path
from orchestrator.store.quarantine import set_aside
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Damage:
    """A record that is not what it should be, and why; `folder` is where it was set aside."""

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
