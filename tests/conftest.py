"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# The models are tiny: a second thread costs more than it brings. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell runs in the background ignores Ctrl-C, and what is ignored stays so in every process
# that is begun from there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RECORDING = Path(__file__).parent / "recording"

SMALL = """
name: small
base: tiny
concept: star
edits:
  - unlearn: [nudge, shake]
  - finetune: {dataset: dots, learning_rate: [1e-4, 1e-3], steps: [0, 1, 2], batch_size: 2}
evaluate: {metrics: [brightness], images_per_prompt: 1}
seeds: 2
resources: {executor: inline}
"""


LONG_FILES = (
    "workers/test_trouble.py",
    "workers/shapes/making/test_train.py",
    "conformance/test_accuracy.py",
    "workers/test_runner.py",
    "workers/training/test_spread.py",
)
"""A file's tests run in one process: begun last, each of these would keep the others waiting."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Make the recording plug-ins known; gives what they noted since the last look."""
    path = tmp_path / "calls.txt"
    monkeypatch.setenv("RESURGE_PLUGINS", str(RECORDING))
    monkeypatch.setenv("RESURGE_TEST_CALLS", str(path))

    def look() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return look


@pytest.fixture(scope="session")
def small() -> str:
    """A sweep of the recording plug-ins that takes seconds."""
    return SMALL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that the others run beside it: the cluster's tests, then the
    files that take minutes.
    """
    root = Path(__file__).parent
    ranks = {root / name: rank for rank, name in enumerate(LONG_FILES, 1)}

    def rank(item: pytest.Item) -> int:
        is_cluster = item.get_closest_marker("cluster") is not None
        return 0 if is_cluster else ranks.get(item.path, len(ranks) + 1)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases each area of the fuzzer ran, whichever process ran them, and how far each
    method was from its released code.
    """
    golden: dict[str, list[float]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "fuzz":
                terminalreporter.write_line(str(value))
            if name == "golden":
                method, difference = value
                golden.setdefault(method, []).append(difference)
    for method, found in sorted(golden.items()):
        terminalreporter.write_line(
            f"golden {method}: {len(found)} comparisons, largest relative difference "
            f"{max(found):.1e}"
        )
