"""Fair shares: by priority, nothing left idle, nobody starved."""

from __future__ import annotations

import pytest

from orchestrator.schedule.shares import Wish, shares


@pytest.mark.parametrize(
    ("wishes", "room", "expected"),
    [
        ({"a": (5, 1)}, 8, {"a": 5}),
        ({"a": (8, 1), "b": (8, 1)}, 8, {"a": 4, "b": 4}),
        ({"a": (8, 3), "b": (8, 1)}, 8, {"a": 6, "b": 2}),
        ({"a": (1, 1), "b": (8, 1)}, 8, {"a": 1, "b": 7}),
        ({"a": (8, 3), "b": (1, 1), "c": (8, 1)}, 9, {"a": 6, "b": 1, "c": 2}),
        ({"a": (8, 100), "b": (8, 1)}, 4, {"a": 4, "b": 1}),
        ({"a": (0, 1), "b": (3, 1)}, 8, {"a": 0, "b": 3}),
        ({"a": (9, 1), "b": (9, 1)}, 7, {"a": 4, "b": 3}),
        ({"a": (9, 1), "b": (9, 1)}, 0, {"a": 1, "b": 1}),
    ],
)
def test_shares(
    wishes: dict[str, tuple[int, float]], room: float, expected: dict[str, int]
) -> None:
    assert shares({name: Wish(*wish) for name, wish in wishes.items()}, room) == expected


def test_everyone_computes_the_same() -> None:
    one = {"a": Wish(9, 1), "b": Wish(9, 1), "c": Wish(2, 5)}
    assert shares(one, 7) == shares(dict(reversed(one.items())), 7)
