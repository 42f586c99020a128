"""What is kept is loaded once, until memory is short."""

from __future__ import annotations

import weakref

from workers.runtime.kept import (
    give_back,
    kept,
    let_go,
    look_everywhere,
    look_past_what_is_here,
)


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


def test_what_is_loaded_for_long_is_searched_again_once_it_is_let_go() -> None:
    model = Judge()
    model.itself = model  # type: ignore[attr-defined]  # only a search can tell that it is unused
    seen = weakref.ref(model)
    look_past_what_is_here()
    del model
    give_back()
    assert seen() is not None
    look_everywhere()
    give_back()
    assert seen() is None
