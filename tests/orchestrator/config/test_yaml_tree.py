"""YAML as values that know where they stand."""

from __future__ import annotations

import math

import pytest

from orchestrator.config.yaml_tree import Node, read_yaml
from orchestrator.core.errors import Problem


def read(text: str) -> tuple[Node | None, list[str]]:
    problems: list[Problem] = []
    node = read_yaml(text, "f.yaml", problems)
    return node, [str(problem) for problem in problems]


def value_of(text: str) -> object:
    node, problems = read(f"a: {text}\n")
    assert node is not None and not problems
    return node.plain()["a"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-5", 1e-5),
        ("1.", 1.0),
        ("+1", 1),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-.inf", -math.inf),
        ("True", True),
        ("yes", "yes"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("|\n  one\n   two", "one\n two\n"),
    ],
)
def test_words_mean_what_yaml_1_2_says(text: str, meant: object) -> None:
    found = value_of(text)
    assert found == meant
    assert type(found) is type(meant)


def test_every_value_and_key_has_its_line() -> None:
    node, _ = read("a:\n  - 1\n  -\n    b: 2\n")
    assert node is not None
    assert node.key_lines == {"a": 1}
    one, other = node.value["a"].value
    assert (one.line, other.line, other.value["b"].line) == (2, 4, 4)


def test_an_alias_stands_where_it_is_written() -> None:
    node, problems = read("a: &x {b: 1}\nc: *x\n")
    assert node is not None and not problems
    assert node.plain() == {"a": {"b": 1}, "c": {"b": 1}}
    assert node.value["c"].line == 2


def test_what_is_wrong_before_the_end_of_the_yaml_is_said_too() -> None:
    node, problems = read("a: !!str 1\na: 2\n<<: {b: 3}\nc: [1,\n")
    assert node is None
    assert [problem.partition(" ")[0] for problem in problems[:3]] == [
        "f.yaml:1:",
        "f.yaml:2:",
        "f.yaml:3:",
    ]
    assert "not valid YAML" in problems[3]
