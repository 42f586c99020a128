"""When state is saved, and when a worker leaves."""

from __future__ import annotations

import threading

import pytest

from workers.runtime.pace import Leaving, Pace


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_a_save_is_due_after_the_interval() -> None:
    clock = Clock()
    pace = Pace(60.0, clock=clock)
    assert not pace.is_due()
    clock.s += 59.9
    assert not pace.is_due()
    clock.s += 0.1
    assert pace.is_due()
    pace.done()
    assert not pace.is_due()


def test_who_is_to_leave_saves_at_once_and_leaves() -> None:
    leaving = threading.Event()
    pace = Pace(60.0, leaving, Clock())
    pace.leave_if_asked()
    leaving.set()
    assert pace.is_due()
    pace.done()
    with pytest.raises(Leaving):
        pace.leave_if_asked()


def test_a_plugin_that_catches_every_exception_does_not_keep_it() -> None:
    assert not issubclass(Leaving, Exception)
