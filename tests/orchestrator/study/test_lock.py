"""One owner of a study: the second is refused, the dead one's place is taken."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.core.liveness import SILENT_S, Watch
from orchestrator.study.lock import StudyLock, owned
from orchestrator.study.study import Study
from orchestrator.sweep.search import Confirm, Goal, Search, SearchSettings
from orchestrator.sweep.space import Range, Space

NAMES = ("a", "b")


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture(params=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kind = "sqlite:///" if request.param == "sqlite" else "journal://"
    url = f"{kind}{tmp_path / 'studies'}"
    space = Space((Range("x", 0.0, 1.0),))
    search = Search((Goal("y"),), (), space, (), SearchSettings(), Confirm(), {})
    for name in NAMES:
        Study(url, name, search, space)
    return url


def elsewhere(storage: str, clock: Clock | None = None) -> StudyLock:
    """The lock of a process on another machine, as far as anyone can tell."""
    lock = StudyLock(storage, NAMES, now_s=clock or time.time)
    lock.process = dataclasses.replace(lock.process, machine="another", host="far", pid=7)
    return lock


def silent(text: str) -> None:
    """Nobody listens."""


def test_the_second_owner_is_refused_and_told_who_the_first_is(storage: str) -> None:
    with owned(StudyLock(storage, NAMES), silent) as check:
        with (
            pytest.raises(ResurgeError, match=r"process \d+ on .* runs this search already"),
            owned(StudyLock(storage, NAMES[1:]), silent),
        ):
            pass
        check()


def test_what_is_released_can_be_owned(storage: str) -> None:
    for _ in range(2):
        with owned(StudyLock(storage, NAMES), silent) as check:
            check()


def test_studies_that_nobody_owns_are_free_beside_owned_ones(storage: str) -> None:
    with (
        owned(StudyLock(storage, NAMES[:1]), silent),
        owned(StudyLock(storage, NAMES[1:]), silent) as check,
    ):
        check()


def test_who_is_refused_leaves_no_claim(storage: str) -> None:
    first = StudyLock(storage, NAMES)
    assert not first.claim()
    assert StudyLock(storage, NAMES).claim()
    first.release()
    assert not StudyLock(storage, NAMES).claim()


def test_of_two_that_come_at_once_no_two_win(storage: str) -> None:
    """The other's claim is written between this one's claim and its look."""
    one, other = StudyLock(storage, NAMES), StudyLock(storage, NAMES)
    one._write(NAMES)
    assert other.claim()
    assert not one._others(NAMES)


def test_a_silent_owner_elsewhere_is_watched_and_then_replaced(storage: str) -> None:
    clock, said = Clock(), []
    dead = elsewhere(storage, clock)
    assert not dead.claim()

    def wait(seconds: float) -> None:
        clock.s += seconds

    dead_since = clock.s
    with owned(StudyLock(storage, NAMES, Watch(clock, clock)), said.append, wait) as check:
        assert clock.s - dead_since > SILENT_S
        check()
        assert len(said) == 1 and "far" in said[0]
        with pytest.raises(ResurgeError, match="taken this search over"):
            dead.beat()


def test_an_owner_elsewhere_that_shows_life_is_not_replaced(storage: str) -> None:
    alive = elsewhere(storage)
    assert not alive.claim()
    with (
        pytest.raises(ResurgeError, match="process 7 on far"),
        owned(StudyLock(storage, NAMES), silent, lambda seconds: alive.beat()),
    ):
        pass
    alive.beat()


def test_a_missing_study_is_one_clear_error(storage: str) -> None:
    with pytest.raises(ResurgeError, match="cannot be used"):
        StudyLock(storage, ("c",))
