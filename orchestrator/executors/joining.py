"""Joining the cluster that RAY_ADDRESS names: found out within a minute whether that can be done.

Ray itself waits for a quarter of an hour, and its words name neither the variable nor the address.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from orchestrator.core.errors import ResurgeError
from orchestrator.executors.own_ray import reason

VARIABLE = "RAY_ADDRESS"
LOCAL = "local"
"""Ray's word for a cluster of its own on this machine."""
CONNECT_S, ANSWER_S = 10.0, 40.0
_WHY = re.compile("Failed to get cluster ID from GCS server: (.+)")
_TRY = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
except Exception as error:
    sys.exit(f"\\n{type(error).__name__}: {' '.join(str(error).split())}")
"""


def address_to_join() -> str | None:
    """What RAY_ADDRESS says; None if Ray is to be started here."""
    address = os.environ.get(VARIABLE) or LOCAL
    return None if address == LOCAL else address


def check(address: str) -> None:
    """Whether a cluster answers there, and takes this process.

    Raises:
        ResurgeError: it does not, and what to do.
    """
    what_else = f"unset {VARIABLE} to run on this machine"
    if "://" in address:
        raise ResurgeError(
            f"{VARIABLE} is {address!r}, and a run joins a cluster as `host:6379` or `auto`, on a "
            "machine of it; from elsewhere send the sweep: `resurge submit SWEEP --cluster "
            f"http://host:8265`. Or {what_else}"
        )
    if address != "auto":
        _reach(address, what_else)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRY, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
        )
    except subprocess.TimeoutExpired as late:
        # Ray tries again and again, and writes down each time what it is told.
        told = _WHY.findall((late.stderr or b"").decode(errors="replace"))
        why = f"what is there does not answer as Ray does within {ANSWER_S:.0f} s"
        why = told[-1] if told else why
    else:
        if done.returncode == 0:
            return
        # What Ray raises says that it failed; why, it only writes down.
        lines = _WHY.findall(done.stderr) or done.stderr.strip().splitlines()
        why = lines[-1] if lines else "no reason was given"
    raise ResurgeError(
        f"{VARIABLE} is {address!r}, and that cluster cannot be joined: {reason(why)}. Start it, "
        f"mend the address (or RAY_AUTH_TOKEN_PATH), or {what_else}"
    )


def _reach(address: str, what_else: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ResurgeError(
            f"{VARIABLE} must be host:port (of Ray's head; mostly port 6379), `auto` or `local`, "
            f"but is {address!r}. Mend it, or {what_else}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise ResurgeError(
            f"{VARIABLE} is {address!r}, and nothing answers there "
            f"({error.strerror or error}). Start that cluster, mend the address, or {what_else}"
        ) from error
