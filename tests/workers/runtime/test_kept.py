"""What is kept is loaded once, until memory is short."""

from __future__ import annotations

import gc
import weakref

from workers.runtime.kept import (
    give_back,
    give_back_model,
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
    look_everywhere()
    give_back()
    del model
    give_back()
    assert seen() is not None
    give_back_model()
    assert seen() is None


def test_what_comes_without_libraries_is_searched_every_time() -> None:
    look_past_what_is_here()
    model = Judge()
    model.itself = model  # type: ignore[attr-defined]
    seen = weakref.ref(model)
    look_past_what_is_here()
    del model
    give_back()
    assert seen() is None


def test_a_judge_whose_place_another_takes_is_searched_for() -> None:
    def load(name: str) -> Judge:
        judge = Judge()
        judge.itself = judge  # type: ignore[attr-defined]
        return judge

    look = kept(1)(load)
    first = weakref.ref(look("one"))
    look_everywhere()
    give_back()
    look("two")
    give_back()
    assert first() is None
    assert gc.get_freeze_count() > 1000, "and what is left is looked past again"
