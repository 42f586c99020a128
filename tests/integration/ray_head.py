"""A real Ray head on loopback, with token authentication and ports of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
START_TIMEOUT_S, STOP_TIMEOUT_S, POLL_S = 300.0, 15.0, 0.2


@dataclass(frozen=True)
class RayHead:
    """`address` is the dashboard's, `gcs` the cluster's; `home` the folder that its jobs take for
    the user's.
    """

    address: str
    gcs: str
    token: str
    home: Path
    process: subprocess.Popen[bytes]


@contextmanager
def ray_head(folder: Path, gpus: int = 0, **environment: str) -> Iterator[RayHead]:
    """A head with two CPUs, or one for each of the GPUs that it claims to have; `environment` is
    its jobs' as well. All of it is stopped at the end.
    """
    home = folder / "head-home"
    home.mkdir()
    token = secrets.token_hex(32)
    token_file = home / "ray.token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    kept = {name: os.environ[name] for name in ("LANG",) if name in os.environ}
    settings = {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    # Ray's sockets need a short path.
    sockets = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    dashboard, *others = free_ports(5)
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--num-cpus", str(gpus or 2)),
        *("--num-gpus", str(gpus)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--port", str(others[0]), "--ray-client-server-port", str(others[1])),
        *("--dashboard-agent-listen-port", str(others[2])),
        *("--dashboard-agent-grpc-port", str(others[3])),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--temp-dir", str(sockets), "--object-store-memory", str(100_000_000)),
    ]
    with (folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=settings, cwd=folder, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, token, process, folder / "ray.log")
        yield RayHead(address, f"127.0.0.1:{others[0]}", token, home, process)
    finally:
        _stop(process)
        shutil.rmtree(sockets, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """So many ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_for(address: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers."""
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{address}/api/jobs/", headers=headers)
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(POLL_S)
    raise AssertionError(f"the head did not start:\n{log.read_text()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The head and everything that it started."""
    head = psutil.Process(process.pid)
    started = [head, *head.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(started, timeout=STOP_TIMEOUT_S)
    for one in alive:
        one.kill()
    process.wait()
