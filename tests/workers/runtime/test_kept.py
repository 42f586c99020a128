"""What is kept is loaded once, until memory is short."""

from __future__ import annotations

import weakref

from workers.runtime.kept import kept, let_go


class Judge:
    """Something large."""


def test_a_judge_is_loaded_once_until_it_is_let_go() -> None:
    loaded: list[str] = []

    @kept(2)
    def load(name: str) -> Judge:
        loaded.append(name)
        return Judge()

    first = weakref.ref(load("one"))
    assert load("one") is first()
    load("two")
    assert loaded == ["one", "two"]
    let_go()
    assert first() is None
    load("one")
    assert loaded == ["one", "two", "one"]
