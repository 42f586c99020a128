"""`resurge list KIND NAME`: what a plug-in says of itself, in full."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.show.plugin import written
from orchestrator.cli.show.plugins import KINDS, show_plugins
from orchestrator.cli.show.screen import Screen
from orchestrator.core.registry import registry
from orchestrator.core.settings import PresetSettings

Command = Callable[..., str]
ALL = [(kind, name) for kind, one in KINDS.items() for name in registry(one)]
METHODS = [
    (name, cls) for name, cls in registry("unlearner").items() if cls.changes and cls.is_method
]  # type: ignore[attr-defined]


def page(kind: str, name: str | None = None, width: int = 140) -> str:
    console = Screen(file=io.StringIO(), width=width)
    show_plugins(kind, name, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_setting_is_described_within_the_width(kind: str, name: str, width: int) -> None:
    text = page(kind, name, width)
    cls = registry(KINDS[kind])[name]
    assert words(text).startswith(f"{name} {KINDS[kind]}, version {cls.version} {cls.summary()}")
    assert max(map(len, text.splitlines())) <= width
    for field in cls.Settings.model_fields:
        assert field == "preset" or f"\n{field} " in text


@pytest.mark.parametrize(("name", "cls"), METHODS)
def test_a_method_says_whose_its_presets_are_and_what_is_pinned(name: str, cls: type) -> None:
    text = words(page("unlearners", name))
    assert cls.paper in text  # type: ignore[attr-defined]
    assert ("compared with what the released code computes: " in text) == bool(cls.golden)  # type: ignore[attr-defined]
    settings = cls.Settings  # type: ignore[attr-defined]
    assert issubclass(settings, PresetSettings)
    for title, preset in settings.PRESETS.items():
        values = ", ".join(f"{key}: {written(value)}" for key, value in preset.values.items())
        whose = f"{preset.title}: {preset.source}" if preset.source else preset.title
        assert words(f"{title} {values} {whose}") in text


def test_the_overview_marks_every_preset() -> None:
    text = page("unlearners", width=400)
    for _, cls in METHODS:
        for title, preset in cls.Settings.PRESETS.items():  # type: ignore[attr-defined]
            assert any(f"{preset.title}: " in line and title in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "1e-5"),
        ((1e-6, 2), "[1e-6, 2]"),
        (("{concept}",), '["{concept}"]'),
        ("a dog", "a dog"),
        ("", '""'),
    ],
)
def test_values_are_written_as_a_sweep_file_says_them(value: object, text: str) -> None:
    assert written(value) == text


def test_what_there_is_not(resurge: Command, tmp_path: Path) -> None:
    assert "did you mean 'uce'?" in resurge("list", "unlearners", "uca", code=2)
    assert "`resurge status mine` shows one" in resurge("list", "sweeps", "mine", code=2)
