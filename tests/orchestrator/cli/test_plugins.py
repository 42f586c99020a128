"""A plug-in that is broken stops no command that can do without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., str]
HEAD = """
from pydantic import Field

from orchestrator.core.settings import Settings
from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner


"""
ASKING = (
    HEAD
    + '''
class AskingSettings(Settings):
    strength: float = Field(description="how much")


class Asking(Unlearner):
    """Has no settings that ship."""

    name = "asking"
    Settings = AskingSettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        return Unlearned([])


class Failing(Unlearner):
    """Cannot say what it costs."""

    name = "failing"

    def passes(self) -> int:
        raise ZeroDivisionError("by [/b]")

    def unlearn(self, erasure: Erasure) -> Unlearned:
        return Unlearned([])
'''
)


def sweep(method: str) -> str:
    return (
        "name: mine\nconcept: star\n"
        "evaluate: {metrics: [concept_accuracy], prompts: ['my {concept}']}\n"
        f"edits: [{{unlearn: {method}}}, {{finetune: {{dataset: related, steps: 5}}}}]\n"
    )


@pytest.fixture
def folder(tmp_path: Path, resurge: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What RESURGE_PLUGINS names, with one plug-in that is broken and one sweep."""
    mine = tmp_path / "[mine]"
    mine.mkdir()
    (mine / "broken.py").write_text("class Forget(Unlearner):\n    name = 'forget'\n")
    monkeypatch.setenv("RESURGE_PLUGINS", str(mine))
    (tmp_path / "sweep.yaml").write_text(sweep("uce"))
    (tmp_path / "broken.yaml").write_text(sweep("forget"))
    return mine


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("list", "unlearners"), ("schema",), ("plan", "sweep.yaml")],
    ids=" ".join,
)
def test_commands_go_on_without_it(
    arguments: tuple[str, ...], folder: Path, resurge: Command
) -> None:
    said = resurge(*arguments).replace("\n", " ")
    assert (
        f"warning: {folder}/broken.py cannot be used: line 1: NameError: name 'Unlearner'" in said
    )
    assert said.count("warning: ") == 1


def test_the_sweep_that_names_it_says_so(folder: Path, resurge: Command) -> None:
    for command in ("plan", "run", "results"):
        said = resurge(command, "broken.yaml", code=2)
        assert f"unlearner 'forget' is not there, because {folder}/broken.py cannot be" in said


def test_the_list_survives_what_a_plugin_says_of_itself(folder: Path, resurge: Command) -> None:
    (folder / "asking.py").write_text(ASKING)
    said = resurge("list", "unlearners")
    assert "asking" in said and "failing" in said
    assert "`passes` of unlearner 'failing' fails: ZeroDivisionError: by [/b]" in said
    resurge("schema")
