"""The memory of a process and everything below it, looked at from /proc while it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

EVERY_S = 0.5
KINDS = ("Pss_Anon", "Pss_Shmem")
"""What is counted: anonymous and shared memory, a shared page divided by its sharers. Pages mapped
from files (Pss_File: libraries, weights that are mapped and not yet written to) are page cache,
which the kernel takes back under pressure."""


class MemoryWatch(threading.Thread):
    """Samples until `stop`; kills the whole tree if it takes more than `limit_bytes`.

    A limit that kills is what keeps a test from taking the machine down with it.
    """

    def __init__(self, pid: int, limit_bytes: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.limit_bytes = pid, limit_bytes
        self.samples: list[tuple[float, int]] = []
        """(seconds since the epoch, bytes)."""
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(EVERY_S):
            pids = descendants(self.pid)
            used = sum(memory_bytes(pid) for pid in pids)
            self.samples.append((time.time(), used))
            if used > self.limit_bytes:
                kill(pids)

    def stop(self) -> None:
        """No more samples."""
        self._done.set()
        self.join()

    def peak_bytes(self, start: float = 0, end: float = float("inf")) -> int:
        """The most between two points in time."""
        return max((used for at, used in self.samples if start <= at <= end), default=0)


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it has ended meanwhile
                continue
    return found


def memory_bytes(pid: int) -> int:
    """Of one process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(KINDS))


def kill(pids: list[int]) -> None:
    """SIGKILL, the root first, so that it starts nothing new."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
