"""What is shown while a search goes on."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from orchestrator.core.artifacts import Failure
from orchestrator.messages import StageFailed, StageProgress, StageStarted, TaskEnded
from orchestrator.search.progress import SearchProgress
from orchestrator.study.tried import Tried, TriedState
from orchestrator.sweep.search import Goal


def trial(
    number: int, state: TriedState = "done", value: float = 0.0, repeat_of: int | None = None
) -> Tried:
    values = (value,) if state == "done" else ()
    reason = "out of memory" if state == "failed" else None
    return Tried(number, state, {}, values, {}, True, reason, repeat_of, {}, 0, 0)


def progress_of(page: io.StringIO, clock: Callable[[], float]) -> SearchProgress:
    console = Console(file=page, width=200)
    return SearchProgress((Goal("resurgence"),), 40, console, clock)


@pytest.fixture
def page() -> io.StringIO:
    return io.StringIO()


def test_a_line_says_how_far_each_study_is_and_its_best(page: io.StringIO) -> None:
    with progress_of(page, lambda: 0.0) as progress:
        progress.begin("worst/esd", [trial(0, value=0.2), trial(1, "running")])
        progress.begin("worst/uce", [])
        progress.told("worst/esd", trial(1, value=0.63))
        progress.told("worst/esd", trial(2, value=0.63, repeat_of=1))
        progress.told("worst/esd", trial(3, "pruned"))
    assert "worst/esd 3/40 best 0.63" in page.getvalue()
    assert "worst/uce 0/40 ·" in page.getvalue()


def test_the_last_phase_is_told(page: io.StringIO) -> None:
    with progress_of(page, lambda: 0.0) as progress:
        progress.begin("worst", [])
        progress.confirming(1)
        progress.confirming(3)
    assert "confirming 1 setting on fresh seeds" in page.getvalue()
    assert "confirming 3 settings on fresh seeds" in page.getvalue()


def test_failures_are_told_at_once(page: io.StringIO) -> None:
    with progress_of(page, lambda: 0.0) as progress:
        progress.begin("worst", [])
        progress(StageFailed("task", "key", Failure("told to fail", "a.log")))
        progress.told("worst", trial(7, "failed"))
        said = page.getvalue()
    assert "told to fail (log: a.log)" in said
    assert "worst trial 7: out of memory" in said


def ticking() -> Iterator[float]:
    return itertools.count(0.0, 1e6)


def test_two_threads_may_speak_at_once(page: io.StringIO) -> None:
    """The scheduler's and the one that owns the studies; every word prints a line here."""
    ticks = ticking()
    progress = progress_of(page, lambda: next(ticks))

    def stages() -> None:
        for number in range(200):
            progress(StageStarted(f"task-{number}", "key"))
            progress(StageProgress(f"task-{number}", "key", 1, 2, {"loss": 0.5}))
            if number % 2:
                progress(TaskEnded(f"task-{number}", "worker", None))

    def studies() -> None:
        for number in range(200):
            progress.told(f"study-{number % 40}", trial(number, value=number / 200))

    with progress, ThreadPoolExecutor(2) as pool:
        for speaking in [pool.submit(stages), pool.submit(studies)]:
            speaking.result()
    assert "100 tasks running" in page.getvalue()
