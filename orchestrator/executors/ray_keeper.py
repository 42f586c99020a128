"""The process that a run's own Ray hangs on: all of Ray ends with it, and it ends with its head.

    python -P ray_keeper.py FOLDER CPUS < a pipe that the head keeps open

Started by own_ray.py in a session of its own, so that whatever Ray starts can be told from other
processes, however it is called and whoever its parent has become. Its first line is JSON: the
cluster's address, or why there is none. It goes when the pipe breaks, or when a process without
which Ray is of no use has died. Run as a file: `orchestrator` need not be importable for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

ESSENTIAL = {"gcs_server", "raylet"}
LOOK_EVERY_S = 0.1
OBJECTS_BYTES = 100_000_000
"""Only events pass through Ray; by default it takes a third of the memory."""


def end_session(session: int) -> None:
    """Kill every process of a session but this one, and those that they start meanwhile."""
    for _ in range(100):
        left = [pid for pid in psutil.pids() if pid != os.getpid() and _is_in(pid, session)]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _is_in(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def _end(folder: str) -> None:
    end_session(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _end_with_the_head(folder: str) -> None:
    sys.stdin.buffer.read()
    _end(folder)


def _start(folder: str, cpus: int) -> str:
    """Start Ray; its address. More workers than cores are the user's choice, and a dashboard would
    outlive its use.
    """
    ray = importlib.import_module("ray")
    # Ray opens its own folder to everybody (mode 777); the one around it is the user's alone.
    context = ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=cpus,
        object_store_memory=OBJECTS_BYTES,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=f"{folder}/r",
    )
    return str(context.address_info["address"])


def _find_ourselves() -> None:
    """Let workers find this very `orchestrator`, where it is not installed (or another one is)."""
    root = Path(__file__).parents[2]
    found = importlib.util.find_spec("orchestrator")
    if found is None or Path(str(found.origin)).parents[1] != root:
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *([others] if others else [])])


def main() -> None:
    """Keep a Ray from its begin to its end."""
    folder, cpus = sys.argv[1], int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what they mean is the head's to say
    threading.Thread(target=_end_with_the_head, args=(folder,), daemon=True).start()
    _find_ourselves()
    try:
        said = {"address": _start(folder, cpus)}
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
    if "address" in said:
        essential = [p for p in psutil.Process().children() if p.name() in ESSENTIAL]
        while all(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in essential):
            time.sleep(LOOK_EVERY_S)
    _end(folder)


if __name__ == "__main__":
    main()
