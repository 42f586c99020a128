"""kill -9 of the driver, of a worker, and Ctrl-C: nothing is lost, nothing runs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.processes import title

Calls = Callable[[], list[str]]
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("calls")]

RUN_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The results of the same sweep when nothing happens to it."""
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESURGE_PLUGINS", str(Path(__file__).parents[1] / "recording"))
        from tests.conftest import SMALL

        done = subprocess.run(
            command(root, SMALL), capture_output=True, text=True, timeout=RUN_TIMEOUT_S
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return results(root)


def command(root: Path, text: str) -> list[str]:
    path = root / "small.yaml"
    path.write_text(text.replace("executor: inline", "executor: ray, workers: 2"))
    resurge = Path(sys.executable).parent / "resurge"
    return [str(resurge), "run", str(path), "--home", str(root / "home")]


def results(root: Path) -> pa.Table:
    """Everything but the time that it took."""
    table = pq.read_table(root / "home" / "results" / "small.parquet")
    return table.drop_columns(["seconds"])


@pytest.fixture
def driver(tmp_path: Path, small: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(tmp_path, small),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.wait()


def records(root: Path) -> dict[str, str]:
    """Each record's text, by file."""
    folder = root / "home" / "store" / "records"
    return {p.name: p.read_text() for p in folder.glob("[!.]*.json")} if folder.exists() else {}


def wait_for_records(root: Path, count: int, driver: subprocess.Popen[str]) -> None:
    """Until the run is in its middle."""
    while len(records(root)) < count:
        try:
            driver.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"the run ended early: {driver.communicate()[0]}")


def worker_pids(driver: subprocess.Popen[str]) -> list[int]:
    """Ray's actors below the driver."""
    below = psutil.Process(driver.pid).children(recursive=True)
    return [process.pid for process in below if title(process).startswith("ray::RayWorker")]


def test_the_driver_is_killed(
    tmp_path: Path, small: str, driver: subprocess.Popen[str], undisturbed: pa.Table, calls: Calls
) -> None:
    wait_for_records(tmp_path, 20, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = records(tmp_path)
    again = subprocess.run(
        command(tmp_path, small), capture_output=True, text=True, timeout=RUN_TIMEOUT_S
    )
    assert again.returncode == 0, again.stdout + again.stderr
    after = records(tmp_path)
    # A record holds when it was made: unchanged text means that the stage was not run again.
    late = {name for name in before if after[name] != before[name]}
    assert not late
    assert results(tmp_path).equals(undisturbed)


def test_ctrl_c_stops_cleanly_and_leaves_a_resumable_store(
    tmp_path: Path, small: str, driver: subprocess.Popen[str], undisturbed: pa.Table
) -> None:
    wait_for_records(tmp_path, 20, driver)
    workers = worker_pids(driver)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=RUN_TIMEOUT_S)
    assert driver.returncode == 130, output
    assert "Stopped." in output
    assert "Traceback" not in output
    assert workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    before = records(tmp_path)
    again = subprocess.run(
        command(tmp_path, small), capture_output=True, text=True, timeout=RUN_TIMEOUT_S
    )
    assert again.returncode == 0, again.stdout + again.stderr
    after = records(tmp_path)
    assert all(after[name] == text for name, text in before.items())
    assert results(tmp_path).equals(undisturbed)


def test_a_worker_is_killed(
    tmp_path: Path, driver: subprocess.Popen[str], undisturbed: pa.Table
) -> None:
    wait_for_records(tmp_path, 20, driver)
    os.kill(worker_pids(driver)[0], signal.SIGKILL)
    before = records(tmp_path)
    output, _ = driver.communicate(timeout=RUN_TIMEOUT_S)
    assert driver.returncode == 0, output
    assert "was lost" in output
    after = records(tmp_path)
    assert all(after[name] == text for name, text in before.items())
    assert results(tmp_path).equals(undisturbed)
