"""What earlier stages left in the store."""

from __future__ import annotations

from orchestrator.errors import CorruptObject
from orchestrator.stage import Stage
from orchestrator.store import Record, Store


def record_of(store: Store, stage: Stage) -> Record:
    """The record of a stage that was done before.

    Raises:
        CorruptObject: it is gone: somebody found it damaged, and has not made it again yet.
    """
    record = store.get(stage)
    if record is None:
        raise CorruptObject(f"{stage!r} is not in the store any more", stage.digest)
    return record
