"""The Ray that a run starts for itself: who hears it, what it imports, how it ends and dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.executors import own_ray
from orchestrator.executors.own_ray import OwnRay
from orchestrator.store.store import Store
from tests.conftest import RECORDING, SMALL
from tests.orchestrator.cli.test_here import NAMES, POISON, ROOT, SCRIPT
from tests.processes import title

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SWEEP = SMALL.replace("executor: inline", "workers: 1").replace("[nudge, shake]", "nudge")
SWEEP = SWEEP.replace("[1e-4, 1e-3]", "1e-3").replace("seeds: 2", "seeds: 1")
POLL_S = 0.05


class Run:
    """`resurge run` of a user whose surroundings are as bad as may be."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.home = folder, folder / "home"
        (folder / "small.yaml").write_text(SWEEP)
        script = folder.parent / "resurge"
        script.write_text(SCRIPT)
        self.process = subprocess.Popen(
            [sys.executable, str(script), "run", "small.yaml", "--home", str(self.home)],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "RESURGE_PLUGINS": str(RECORDING),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Whoever runs the tests may have HUP ignored, and what is ignored stays so.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def until(self, found: Callable[[], object]) -> None:
        """Wait for something, as long as the run runs."""
        while not found():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(POLL_S)

    @property
    def keeper(self) -> int:
        """The process that Ray hangs on; 0 if there is none yet."""
        return next(iter(keepers(psutil.Process(self.process.pid))), 0)

    @property
    def records(self) -> int:
        """How many stages are done."""
        folder = self.home / "store" / "records"
        return len(list(folder.glob("[!.]*.json"))) if folder.exists() else 0

    def said(self) -> str:
        """All that it printed until its end."""
        return self.process.communicate(timeout=300)[0]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Runs that are killed in the end."""
    runs: list[Run] = []

    def start(**environment: str) -> Run:
        (tmp_path / "here").mkdir(exist_ok=True)
        runs.append(Run(tmp_path / "here", **environment))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.communicate()


def session(keeper: int) -> list[psutil.Process]:
    """Everything of a Ray, whoever its parent has become."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == keeper and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def keepers(parent: psutil.Process) -> list[int]:
    """The processes below this one that a Ray hangs on."""
    return [child.pid for child in parent.children() if "ray_keeper" in title(child)]


def temporary(keeper: int) -> Path:
    """The folder of its sockets."""
    return Path(psutil.Process(keeper).cmdline()[-2])


def addresses(processes: list[psutil.Process]) -> set[str]:
    """Where these processes listen: the addresses of their TCP sockets."""
    found = {
        c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"
    }
    return {address.removeprefix("::ffff:") for address in found}


def test_a_run_on_ones_own_machine(started: Callable[..., Run], tmp_path: Path) -> None:
    """The user stands among files that are called like modules, has no home folder and a TMPDIR
    that is too long for sockets; in the run's middle a process of Ray's own is killed.
    """
    told, long = tmp_path / "told", tmp_path / ("long" * 30)
    long.mkdir()
    (tmp_path / "here").mkdir()
    for name in NAMES:
        (tmp_path / "here" / f"{name}.py").write_text(POISON.format(told=str(told)))
    run = started(HOME=str(tmp_path / "nobody"), TMPDIR=str(long))

    run.until(lambda: run.records >= 4)
    keeper = run.keeper
    folder, processes = temporary(keeper), session(keeper)
    names = {process.name() for process in processes}
    assert {"gcs_server", "raylet"} < names and any("RayWorker" in name for name in names)
    assert addresses([*processes, psutil.Process(run.process.pid)]) == {"127.0.0.1"}
    assert folder.stat().st_mode & 0o777 == 0o700
    tokens = {process.environ().get("RAY_AUTH_TOKEN") for process in processes[:1]}
    assert all(re.fullmatch("[0-9a-f]{64}", str(token)) for token in tokens)

    before = run.records
    next(p for p in processes if p.name() == "raylet").kill()
    run.until(lambda: run.keeper not in (0, keeper))
    assert not session(keeper), "of the old one nothing is left"
    run.until(lambda: run.records > before)
    last = run.keeper
    said = run.said()
    assert run.process.returncode == 0, said
    assert said.count("Ray on this machine has died and is started again") == 1
    assert "Traceback" not in said
    assert len(Store(run.home / "store").keys()) == run.records
    assert not told.exists(), told.read_text()
    assert not (tmp_path / "nobody" / ".ray").exists(), "no token is in a file"
    assert not session(last) and not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_signal_while_ray_starts(started: Callable[..., Run], number: signal.Signals) -> None:
    run = started()
    run.until(lambda: run.keeper)
    keeper = run.keeper
    run.until(lambda: len(session(keeper)) > 1)
    folder = temporary(keeper)
    run.process.send_signal(number)
    said = run.said()
    assert run.process.returncode == (-9 if number == signal.SIGKILL else 130), said
    assert ("Stopped." in said) == (number != signal.SIGKILL)
    while session(keeper):
        time.sleep(POLL_S)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_with_a_process_that_it_cannot_be_without_all_of_it_ends(name: str) -> None:
    ray = OwnRay(cpus=1)
    try:
        ray.start()
        assert not ray.is_gone
        [keeper] = keepers(psutil.Process())
        next(p for p in session(keeper) if p.name() == name).kill()
        assert ray.dies_within(60)
        assert not session(keeper)
    finally:
        ray.end()


def test_why_it_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason is, one sentence; and nothing is left."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # tmp_path may be too long
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "soon")
    before, ray = dict(os.environ), OwnRay(cpus=1)
    with pytest.raises(ResurgeError) as caught:
        ray.start()
    ray.end()
    words = "Ray cannot start on this machine: ValueError: invalid literal for int()"
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    assert not list(short.iterdir())
    short.rmdir()
    assert os.environ == before, "nothing of it is left in this process"


def test_no_folder_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one is named with what is wrong with it."""
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    monkeypatch.setattr(own_ray, "NEEDED_BYTES", 10**18)
    with pytest.raises(ResurgeError) as caught:
        own_ray._folder()
    said = str(caught.value)
    assert "/no/such/folder: No such file or directory; /tmp: only " in said
    assert "set TMPDIR to a folder with a short path" in said
