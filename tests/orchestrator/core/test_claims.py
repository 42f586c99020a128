"""Claims: whoever keeps them, a thing has one owner, and a dead one's place is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import pytest

from orchestrator.core.claims import Claims
from orchestrator.core.liveness import SILENT_S, Sign, Watch


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


class Book(Claims):
    """Claims in a dict that all share: by thing and owner the owner's sign of life."""

    def __init__(self, kept: dict[tuple[str, str], Sign | None], clock: Clock) -> None:
        super().__init__(Watch(clock, clock), clock)
        self.kept = kept

    def take(self, *things: str) -> list[str]:
        """The others that have one of them."""
        return [process.id for process in self._take(things)]

    def _write(self, things: Iterable[str]) -> None:
        sign = Sign(self.process, self._beat, self._now_s())
        self.kept.update({(thing, self.process.id): sign for thing in things})

    def _remove(self, things: Iterable[str], owner: str) -> None:
        for thing in things:
            self.kept.pop((thing, owner), None)

    def _claimed(self, things: Iterable[str]) -> Mapping[str, Sign | None]:
        wanted = set(things)
        return {owner: sign for (thing, owner), sign in self.kept.items() if thing in wanted}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept() -> dict[tuple[str, str], Sign | None]:
    return {}


def test_who_is_refused_one_of_several_has_none(
    kept: dict[tuple[str, str], Sign | None], clock: Clock
) -> None:
    one, other = Book(kept, clock), Book(kept, clock)
    assert one.take("a") == []
    assert other.take("a", "b") == [one.process.id]
    assert list(kept) == [("a", one.process.id)]
    assert one.take("b") == []


def test_of_two_that_come_at_once_at_most_one_wins(
    kept: dict[tuple[str, str], Sign | None], clock: Clock
) -> None:
    one, other = Book(kept, clock), Book(kept, clock)
    one._write(["a"])
    assert other.take("a") == [one.process.id]
    assert one._others(["a"]) == {}


def test_a_silent_owners_place_is_taken(
    kept: dict[tuple[str, str], Sign | None], clock: Clock
) -> None:
    far, near = Book(kept, clock), Book(kept, clock)
    far.process = dataclasses.replace(far.process, machine="another")
    assert far.take("a", "b") == []
    assert near.take("b") == [far.process.id]
    clock.s += SILENT_S + 1
    assert near.take("b") == []


def test_an_owner_that_left_no_sign_is_nobody(
    kept: dict[tuple[str, str], Sign | None], clock: Clock
) -> None:
    kept["a", "0123456789ab"] = None
    assert Book(kept, clock).take("a") == []
    assert ("a", "0123456789ab") not in kept
