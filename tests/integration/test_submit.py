"""A sweep on a real Ray head with token authentication: submitted, followed, resumed, cancelled."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.ray_head import RayHead, free_ports, ray_head

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RECORDING = Path(__file__).parents[1] / "recording"
RESURGE = str(Path(sys.executable).parent / "resurge")
TIMEOUT_S, POLL_S = 300.0, 0.5

SWEEP = """
name: far
base: tiny
concept: star
edits:
  - unlearn: nudge
  - finetune: {dataset: dots, learning_rate: 1e-3, steps: [0, 1], batch_size: 2}
evaluate: {metrics: [brightness], images_per_prompt: 1, controls: false, retain: []}
resources: {executor: ray, workers: 1}
"""
# Nothing of it but the base's pictures is done when the other one is.
ENDLESS = (
    SWEEP.replace("name: far", "name: endless")
    .replace("unlearn: nudge", "unlearn: {nudge: {amount: 0.02}}")
    .replace("[0, 1]", "[0, 1, 1000000]")
)

WHERE = '''
"""Notes where our code was loaded from, in whatever process loads the plug-ins."""

import os
from pathlib import Path

import orchestrator

if path := os.environ.get("RESURGE_TEST_CALLS"):
    with Path(path).open("a") as stream:
        stream.write(f"code {orchestrator.__file__}\\n")
'''


@dataclass
class Machine:
    """A user's machine: a home folder, a working directory, and what is set there."""

    folder: Path
    settings: dict[str, str]

    def command(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return subprocess.Popen(
            [RESURGE, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**kept, "HOME": str(self.folder), **self.settings, **settings},
        )

    def __call__(self, *words: str, code: int = 0, **settings: str) -> str:
        process = self.command(*words, **settings)
        try:
            printed, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
        assert process.returncode == code, printed
        assert "Traceback" not in printed
        return printed


@dataclass
class Place:
    """A head, what its plug-ins noted, and a machine that may use it."""

    head: RayHead
    store: Path
    mine: Machine
    noted: Path

    def calls(self) -> list[str]:
        """What was noted since the last look."""
        lines = self.noted.read_text().splitlines() if self.noted.exists() else []
        self.noted.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("submit")
    noted, store, token_file = root / "calls.txt", root / "store", root / "lab.token"
    plugins = root / "my-plugins"
    shutil.copytree(RECORDING, plugins)
    (plugins / "where.py").write_text(WHERE)
    with ray_head(root, RESURGE_TEST_CALLS=str(noted)) as head:
        token_file.touch(mode=0o600)
        token_file.write_text(head.token)
        (root / "clusters.yaml").write_text(clusters(head.address, token_file, store))
        settings = {
            "RESURGE_PLUGINS": str(plugins),
            "RESURGE_CLUSTERS": str(root / "clusters.yaml"),
        }
        mine = Machine(root / "mine", settings)
        mine.folder.mkdir()
        for folder in (root, mine.folder):  # where the head was started, and where submit is
            (folder / "workers").mkdir()
            (folder / "workers" / "__init__.py").write_text("raise ImportError('not ours')")
        (mine.folder / "far.yaml").write_text(SWEEP)
        (mine.folder / "endless.yaml").write_text(ENDLESS)
        yield Place(head, store, mine, noted)
    assert head.process.poll() is not None


def clusters(address: str, token_file: Path, store: Path) -> str:
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    entry = f"token_file: {token_file}, store: {store}"
    return json.dumps({"clusters": None}).replace(
        "null", f'{{lab: {{address: "{address}", {entry}}}, gone: {{address: "{gone}", {entry}}}}}'
    )


@pytest.fixture(scope="module")
def first(place: Place) -> str:
    """What the first submission printed."""
    return place.mine("submit", "far.yaml", "--cluster", "lab", "--follow")


def test_a_sweep_is_submitted_and_followed_to_its_end(place: Place, first: str) -> None:
    assert "Submitted far-1 to lab" in first
    assert "stages ran · 0 failed · 0 skipped" in first
    assert "far-1 has ended." in first
    assert place.head.token not in first
    calls = place.calls()
    assert "unlearn 0.01" in calls
    loaded = {call for call in calls if call.startswith("code ")}
    # The code that planned is the code that ran: sent along, not the head's own.
    assert loaded
    assert all("py_modules_files" in call for call in loaded), loaded


def test_submitting_again_runs_nothing(place: Place, first: str) -> None:
    place.calls()
    printed = place.mine("submit", "far.yaml", "--cluster", "lab", "--follow")
    assert "It goes on from what is finished." in printed
    assert "far-2 has ended." in printed
    assert "0 stages ran · 0 failed · 0 skipped" in printed
    assert not [call for call in place.calls() if not call.startswith("code ")]


def test_another_machine_sees_what_was_done(place: Place, first: str, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other", place.mine.settings)
    status = other("status", "far", "--cluster", "lab")
    assert "has ended." in status
    assert "0 failed" in status
    rows = json.loads(other("results", "far", "--json", "--cluster", "lab"))
    assert rows
    listed = other("list", "sweeps", RESURGE_CLUSTER="lab")
    assert ["far", "finished", "2/2", "0"] in [line.split()[:4] for line in listed.splitlines()]
    logs = other("logs", "far", "--cluster", "lab", "--tail", "2")
    assert "Browse it" in logs
    assert "Task logs:" in logs
    stranger = Machine(other.folder, {k: v for k, v in other.settings.items() if "PLUG" not in k})
    listed = stranger("list", "sweeps", "--cluster", "lab")
    # Without the plug-ins as well: what is read is the plan as it was run.
    assert ["far", "finished", "2/2", "0"] in [line.split()[:4] for line in listed.splitlines()]
    assert not (other.folder / ".resurge").exists()


def test_what_is_known_survives_the_head(place: Place, first: str) -> None:
    status = place.mine("status", "far", "--cluster", "gone")
    assert "cannot be reached" in status
    assert "trials 2/2 done" in status
    assert place.mine("results", "far", "--cluster", "gone")
    assert "cannot be reached" in place.mine("logs", "far", "--cluster", "gone", code=2)


def test_without_the_right_token_nothing_is_answered(place: Place, tmp_path: Path) -> None:
    wrong = "f" * 64
    stranger = Machine(tmp_path / "stranger", {**place.mine.settings})
    stranger.folder.mkdir()
    (stranger.folder / "far.yaml").write_text(SWEEP)
    address, store = place.head.address, str(place.store)
    for words in (("submit", "far.yaml"), ("status", "far"), ("logs", "far"), ("cancel", "far")):
        command = (*words, "--cluster", address)
        printed = stranger(*command, code=2, RESURGE_STORE=store)
        assert "wants a token and there is none here" in printed
        printed = stranger(*command, code=2, RESURGE_STORE=store, RAY_AUTH_TOKEN=wrong)
        assert "refuses the token from RAY_AUTH_TOKEN" in printed
        assert wrong not in printed


def test_the_token_goes_to_no_other_address(place: Place, first: str) -> None:
    """Ray's own variables stand before the address that its client is given."""
    elsewhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    settings = {"RAY_ADDRESS": elsewhere, "RAY_API_SERVER_ADDRESS": elsewhere}
    assert "has ended." in place.mine("status", "far", "--cluster", "lab", **settings)


def test_a_running_sweep_is_left_and_found_again_and_cancelled(place: Place) -> None:
    mine = place.mine
    follower = mine.command("submit", "endless.yaml", "--cluster", "lab", "--follow")
    try:
        # The unlearned model has been judged: what comes then goes on for days.
        wait_until(lambda: "brightness" in place.calls(), follower)
        follower.send_signal(signal.SIGINT)
        left, _ = follower.communicate(timeout=TIMEOUT_S)
    finally:
        follower.kill()
    assert follower.returncode == 130
    assert "endless-1 goes on" in left
    again = mine("submit", "endless.yaml", "--cluster", "lab")
    assert "endless-1 is running. It is this very sweep; nothing was sent." in again
    other = mine("submit", "endless.yaml", "seeds=2", "--cluster", "lab", code=2)
    assert "another sweep of the name 'endless' runs on lab" in other
    status = mine("status", "endless", "--cluster", "lab")
    assert "endless-1 is running." in status
    assert "still run by process" in status
    listed = mine("list", "sweeps", "--cluster", "lab").splitlines()
    assert ["endless", "running"] in [line.split()[:2] for line in listed]
    cancelled = mine("cancel", "endless", "--cluster", "lab")
    assert "endless-1 was stopped. Kept:" in cancelled
    assert "0/3 done" not in cancelled
    log = mine("logs", "endless", "--cluster", "lab")
    assert "Stopped. What is finished is kept" in log
    assert "there is nothing to stop" in mine("cancel", "endless", "--cluster", "lab")
    listed = mine("list", "sweeps", "--cluster", "lab").splitlines()
    assert ["endless", "stopped"] in [line.split()[:2] for line in listed]


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look again and again while the process runs."""
    end_s = time.monotonic() + TIMEOUT_S
    while not is_true():
        try:
            process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < end_s, "it took too long"
            continue
        raise AssertionError(f"it ended early: {process.communicate()[0]}")
