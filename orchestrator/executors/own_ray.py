"""A Ray of this run's own: on loopback, with a token of its own, in a folder of mode 700."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import one_line
from orchestrator.executors import ray_keeper

START_S, END_S = 55.0, 15.0
NEEDED_BYTES = 200_000_000
"""Ray's logs, its sockets, and its objects where there is no shared memory."""
MAX_SOCKET_BYTES = 103
"""What the shortest system (macOS) allows a socket's path to have."""
_SOCKET = "/resurge-ray-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


class OwnRay:
    """A Ray on this machine that nobody else can use, and that ends with this process.

    Args:
        cpus: how many it says it has.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[str, str | None] = {}

    def start(self) -> str:
        """Start it; its address. `end` is to be called whatever becomes of this.

        Raises:
            ResurgeError: it cannot be started, and why.
        """
        settings = {
            # Ray's name for: no second machine. Without it Ray replaces 127.0.0.1 by the address
            # that others see, and listens on all.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _token(),
        }
        self._before = {name: os.environ.get(name) for name in settings}
        os.environ |= settings  # this process asks Ray as well
        self._folder = _folder()
        log = self._folder / "start.log"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", ray_keeper.__file__, str(self._folder), str(self._cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={
                    **os.environ,
                    # A worker that is kept ready for tasks is of no use to actors.
                    "RAY_prestart_worker_first_driver": "0",
                    # Seconds: its keeper sees that Ray has died before Ray fills the terminal.
                    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "3",
                },
                start_new_session=True,
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else b""
        said = json.loads(line) if line else {}
        if "address" in said:
            return str(said["address"])
        why = said.get("error") or _last_line(log)
        if not ready:
            why = f"it is not up after {START_S:.0f} s; {why}".rstrip("; ")
        raise ResurgeError(f"Ray cannot start on this machine: {reason(why)}")

    @property
    def is_gone(self) -> bool:
        """Whether it has died."""
        return self.dies_within(0)

    def dies_within(self, seconds: float) -> bool:
        """The same, for somebody who has a reason to think so; waits for so long."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End all of it at once. May be called twice."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()  # that is the sign
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            ray_keeper.end_session(self._process.pid)  # there is something left if it was killed
            self._process.stdout.close()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._before = {}


@cache
def _token() -> str:
    """One for all of this process's: Ray reads it once."""
    return secrets.token_hex(32)


def _folder() -> Path:
    """A folder that is this user's alone, for Ray's sockets and logs; where a socket's path would
    be too long, not in TMPDIR.
    """
    places = [os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp"]
    why_not = []
    for place in dict.fromkeys(places):
        try:
            if len(os.fsencode(place) + _SOCKET.encode()) > MAX_SOCKET_BYTES:
                raise OSError(0, "its path is too long for Ray's sockets")
            free = shutil.disk_usage(place).free
            if free < NEEDED_BYTES:
                raise OSError(0, f"only {free / 1e6:.0f} of {NEEDED_BYTES / 1e6:.0f} MB are free")
            return Path(tempfile.mkdtemp(prefix="resurge-ray-", dir=Path(place).absolute()))
        except OSError as error:
            shown = place if len(place) <= 60 else f"{place[:50]}…"
            why_not.append(f"{shown}: {error.strerror}")
    raise ResurgeError(
        f"Ray has no folder for its sockets and logs ({'; '.join(why_not)}): free some space, or "
        "set TMPDIR to a folder with a short path that can be written"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no reason was given")


def reason(text: str) -> str:
    """A message of Ray's as a part of a sentence."""
    return one_line(" ".join(text.split()), 400)
