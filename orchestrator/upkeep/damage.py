"""Objects that are not what their records say."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.paths import RECORDS, json_path
from orchestrator.store.quarantine import set_aside
from orchestrator.store.record import Record
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
    data = store.files.read_bytes(json_path(RECORDS, key))
    if data is None:
        return None
    kind = "record"
    try:
        record = Record.from_bytes(key, data)
        kind = record.kind
        faults = store.faults(record)
        if record.identified() != record.digest:
            faults.append("its digest is not that of its identity")
    except ValueError as error:
        faults = [str(error)]
    if not faults:
        return None
    folder = set_aside(store.files, key, data, "; ".join(faults)) if repair else None
    return Damage(key, kind, tuple(faults), folder)
