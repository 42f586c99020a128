"""What a user writes is shown as it is, by every command: no markup, no control characters."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from orchestrator.cli import main as command_line
from orchestrator.cli.show.screen import Screen, bold
from orchestrator.cli.show.tables import new_table
from orchestrator.core.text import LONGEST_TEXT, one_line, visible

LONG = "x" * 5_000
WRITTEN = {
    "[/b]": "[/b]",
    "a [red] cat": "a [red] cat",
    "[link=http://x]y[/link]": "[link=http://x]y[/link]",
    ":smile:": ":smile:",
    "\\[b]": "\\[b]",
    "a\x1b[31mcat": "a\\x1b[31mcat",
    "up\x1b[2Aand over": "up\\x1b[2Aand over",
    "x\r\nerror: y": "x\\r\\nerror: y",
    "bell\x07": "bell\\x07",
    "c1\x9b31m": "c1\\x9b31m",
    "a\u202ebc": "a\\u202ebc",
    "a\u2066bc": "a\\u2066bc",
    "hidden\u200bspace": "hidden\\u200bspace",
    "line\u2028end": "line\\u2028end",
    "\ud800": "\\ud800",
    "nul\0": "nul\\x00",
    "\u2019s": "\u2019s",
    "日本 👩\u200d🔬": "日本 👩\u200d🔬",
}


def page() -> Screen:
    return Screen(file=io.StringIO(), width=200)


def shown(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    as_line = WRITTEN[text]
    assert one_line(text) == as_line
    for wrap in (
        lambda screen: screen.print(one_line(text)),
        lambda screen: screen.print(Text(one_line(text), style="red")),
        lambda screen: screen.print(bold(one_line(text), " is bold")),
        lambda screen: screen.print(Tree(one_line(text))),
    ):
        screen = page()
        wrap(screen)
        assert as_line in shown(screen)
    table = new_table("concept")
    table.add_row(text)
    screen = page()
    screen.print(table)
    assert as_line in shown(screen)


@pytest.mark.parametrize("text", WRITTEN)
def test_nothing_that_moves_the_cursor_passes_the_screen(text: str) -> None:
    """Also where nobody thought of it. A line's end may: errors have several lines."""
    screen = page()
    screen.print(text, Text(text), bold(text))
    screen.print(Tree(text))
    with screen.status(text) as status:
        status.update(text)
    assert set(shown(screen)) <= set(visible(shown(screen)))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown(screen))


def test_a_long_text_is_cut_and_still_told_from_others() -> None:
    one, other = one_line(LONG + "a"), one_line(LONG + "b")
    assert len(one) == len(other) == LONGEST_TEXT
    assert one != other
    assert one.startswith("x" * 70)


Command = Callable[..., str]


NASTY = ["[/b]", "a [red] $c$", "\x1bA\n\u202eB"]


def test_every_command_shows_the_concepts_as_they_are(resurge: Command, tmp_path: Path) -> None:
    """Also in folders that are called like markup."""
    folder = tmp_path / "[red] [/b]"
    folder.mkdir(parents=True)
    file = folder / "[bold].yaml"
    sweep = {
        "name": "nasty",
        "base": "anything",
        "concept": NASTY,
        "edits": [{"unlearn": "nudge"}, {"finetune": {"dataset": "dots", "steps": [1, 2]}}],
        "evaluate": {
            "metrics": ["glow"],
            "images_per_prompt": 1,
            "controls": False,
            "prompts": ["[/i] {concept}"],
        },
        "resources": {"executor": "inline"},
    }
    file.write_text(json.dumps(sweep))
    at = ("--home", str(folder / "[/home]"))
    lines = [one_line(concept) for concept in NASTY]

    def has_all(printed: str) -> None:
        flat = printed.replace("\n", "")
        assert not [line for line in lines if line not in flat]

    has_all(resurge("plan", str(file), "--full", *at))
    has_all(resurge("run", str(file), *at))
    resurge("status", "nasty", *at)
    has_all(resurge("results", "nasty", *at))
    has_all(resurge("results", "nasty", "--by", "concept", *at))
    has_all(resurge("results", "nasty", "--time-to-resurgence", *at))
    assert str(folder / "out" / "nasty.csv") in resurge(
        "export", "nasty", "--to", str(folder / "out"), *at
    )
    resurge("list", "sweeps", *at)
    resurge("store", "du", *at)
    resurge("store", "verify", *at)
    trials = pq.read_table(folder / "out" / "nasty.parquet").to_pylist()
    one, other = [row["trial"] for row in trials if row["concept"] in NASTY[:2]][::2]
    assert one_line(NASTY[0]) in resurge("reproduce", one, "--show", *at)
    resurge("diff", one, other, *at)


@pytest.mark.parametrize("nasty", ["[/b]", "a\x1b[31m", "a\u202eb", LONG, "[" * 300])
def test_errors_show_what_was_given(resurge: Command, tmp_path: Path, nasty: str) -> None:
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(
            {"name": nasty, nasty[:900]: 1, "concept": nasty, "edits": [{nasty[:900]: nasty}]}
        )
    )
    begin = visible(nasty)[:40]
    for arguments in (
        ("plan", "sweep.yaml", f"{nasty}=1"),
        ("plan", f"{nasty}.yaml"),
        ("plan", nasty),
        ("results", nasty),
        ("list", nasty),
        ("reproduce", nasty),
        ("diff", nasty, nasty),
        ("plan", "sweep.yaml", "--home", nasty),
        ("store", "du", "--store", nasty),
        ("status", "sweep.yaml", "--cluster", nasty),
    ):
        printed = resurge(*arguments, code=2)
        assert begin in printed.replace("\n", ""), arguments
        assert len(printed) < 5_000, arguments


def test_only_the_screen_prints() -> None:
    """A console of rich's own would read markup."""
    code = Path(command_line.__file__).parents[1]
    texts = {str(p.relative_to(code)): p.read_text("utf-8") for p in code.rglob("*.py")}
    makers = {name for name, text in texts.items() if re.search(r"\bConsole\((?!\))", text)}
    assert makers == {"search/search.py"}  # for whoever calls it from Python
    assert not [n for n, text in texts.items() if re.search(r"from_markup|markup=True", text)]
