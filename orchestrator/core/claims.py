"""One owner a thing, among processes that may run anywhere and die at any time.

Who wants things writes its claims, then looks for others': if it is alone, they are its own; if
not, it withdraws. Of two that come at once at most one finds itself alone, whatever keeps the
claims, because a look shows what was written before. What a dead process claimed is taken over.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from orchestrator.core.liveness import BEAT_S, Process, Sign, Verdict, Watch


class Claims(ABC):
    """What one process claims. A subclass says where claims are kept.

    Args:
        watch: judges the other processes.
        now_s: the time of day.
    """

    def __init__(self, watch: Watch | None = None, now_s: Callable[[], float] = time.time) -> None:
        self.process = Process.here()
        self._watch = watch or Watch()
        self._now_s = now_s
        self._beat = 0

    @abstractmethod
    def _write(self, things: Iterable[str]) -> None:
        """Write this process's claims of them."""

    @abstractmethod
    def _remove(self, things: Iterable[str], owner: str) -> None:
        """Remove a process's claims of them, by its id; no harm where it has none."""

    @abstractmethod
    def _claimed(self, things: Iterable[str]) -> Mapping[str, Sign | None]:
        """Who claims one of them, by id: its last sign of life, None if there is none of it."""

    def _take(self, things: Sequence[str]) -> dict[Process, Verdict]:
        """Own them, unless others do or may own one: those others, and then nothing is claimed."""
        self._write(things)
        others = self._others(things)
        if others:
            self._remove(things, self.process.id)
        return others

    def _others(self, things: Sequence[str]) -> dict[Process, Verdict]:
        """Who else claims one of them and is not dead; a dead one's claims are removed."""
        found: dict[Process, Verdict] = {}
        for owner, sign in self._claimed(things).items():
            if owner == self.process.id:
                continue
            if sign is None or (verdict := self._watch.look(sign)) == "dead":
                self._remove(things, owner)
            else:
                found[sign.process] = verdict
        return found


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Inside, `beat` is called every BEAT_S seconds, on a thread of its own; it must not raise."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(BEAT_S):
            beat()

    thread = threading.Thread(target=work, name="resurge-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
