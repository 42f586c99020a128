"""Who runs a store's sweeps now, as one look at it tells."""

from __future__ import annotations

import time

from orchestrator.leases import Head, read_heads
from orchestrator.liveness import SILENT_S, Watch
from orchestrator.store import Store


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
