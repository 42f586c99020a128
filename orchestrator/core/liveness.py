"""Is the process that holds something still alive? Without trust in anybody's clock.

A process that holds something writes a beat, a number that grows, every BEAT_S seconds. On the same
machine its process is looked up, so that what a killed one held is free at once. From another
machine, a beat that did not grow for SILENT_S seconds of one's own clock is a dead one's.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["alive", "dead", "unsure"]
BEAT_S = 10.0
SILENT_S = 60.0
LONG_AGO_S = 3600.0
"""No two machines' clocks differ by this much: a beat as old as that needs no watching."""
_START_FIELD = 22 - 4
"""Of /proc/PID/stat, behind the state, which is the third (proc(5))."""


@dataclass(frozen=True)
class Process:
    """Who holds something. `id` is unique; `born` tells a process from a later one of its pid."""

    id: str
    host: str
    machine: str
    pid: int
    born: float

    @classmethod
    def here(cls) -> Process:
        """This process, with an id of its own at each call."""
        pid = os.getpid()
        return cls(uuid.uuid4().hex[:12], socket.gethostname(), _machine(), pid, _born(pid) or 0.0)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Process:
        """The inverse of `to_json`; what else stands there is left aside."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it ran, or runs, on this machine since that was last started."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether it runs no more; to be asked of a process that `is_here`."""
        return _born(self.pid) != self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Sign:
    """A process's last sign of life: a number that grows, and its own time of day."""

    process: Process
    beat: int
    at_s: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self.process.to_json(), "beat": self.beat, "at_s": self.at_s}


class Watch:
    """Judges processes by what one sees of their beats.

    Args:
        clock_s: a clock that only goes forward.
        now_s: the time of day, for beats that are very old.
    """

    def __init__(
        self,
        clock_s: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock_s = clock_s
        self._now_s = now_s
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, sign: Sign) -> Verdict:
        """What can be said of a process by its last sign."""
        process, now_s = sign.process, self._clock_s()
        if process.is_here:
            return "dead" if process.is_gone else "alive"
        if self._now_s() - sign.at_s > LONG_AGO_S:
            return "dead"
        beat, since_s = self._seen.setdefault(process.id, (sign.beat, now_s))
        if sign.beat != beat:
            self._seen[process.id] = (sign.beat, now_s)
            return "alive"
        return "dead" if now_s - since_s > SILENT_S else "unsure"


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine since it was last started, and the processes that can be seen here."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts += [boot.read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)


def _born(pid: int) -> float | None:
    """When the process was started, since the machine was; None if there is none.

    Where there is /proc: a time of day would move whenever the clock is set.
    """
    if Path("/proc/self/stat").exists():
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *rest = text.rpartition(")")[2].split()
        return None if state in ("Z", "X") else float(rest[_START_FIELD])
    import psutil

    try:
        return float(round(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None
