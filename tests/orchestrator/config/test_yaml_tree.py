"""YAML as values that know where they stand."""

from __future__ import annotations

import itertools
import math

import pytest

from orchestrator.config import yaml_tree
from orchestrator.config.yaml_tree import Node, read_yaml
from orchestrator.core.errors import Problem, SweepError
from orchestrator.sweepfile.load import parse


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


ODD = {
    "beyond Unicode": ('a: 1\nb: "\\U00110000"', "f.yaml:2: not valid YAML: there is no character"),
    "far beyond": ('a: "\\UFFFFFFFF"', "f.yaml:1: not valid YAML: there is no character"),
    "a lone surrogate": ('a: "\\ud800"', "f.yaml:1: a: half of a character"),
    "one that is written": ("a: \udce9", "f.yaml:1: not valid YAML: the character"),
    "NUL": ('a: "x\\0y"', "f.yaml:1: a: a text may not hold NUL"),
    "NUL in a key": ('"x\\0y": 1', "f.yaml:1: a text may not hold NUL"),
    "a NUL that is written": ("a: x\0y", "f.yaml:1: not valid YAML: the character"),
    "a tab": ("a:\n\tb: 1", "f.yaml:2: not valid YAML: while scanning"),
    "an escape that is none": ('a: "\\q"', "f.yaml:1: not valid YAML: while scanning"),
    "a short escape": ('a: "\\u12"', "f.yaml:1: not valid YAML: while scanning"),
    "a python object": ("a: !!python/object/apply:os.system [x]", "f.yaml:1: a: tags such as"),
    "binary": ("a: !!binary aGVsbG8=", "f.yaml:1: a: tags such as"),
    "a time with a tag": ("a: !!timestamp 2001-12-14", "f.yaml:1: a: tags such as"),
    "a long integer": (f"a: 1{'0' * 300}", "f.yaml:1: a: must be a number of 64 bits"),
    "a long hexadecimal": (f"a: 0x{'f' * 300}", "f.yaml:1: a: must be a number of 64 bits"),
    "a duplicate key": ("a: {b: 1, b: 2}", "f.yaml:1: a.b: duplicate key 'b', first on line 1"),
    "a list as a key": ("? [a]\n: b", "f.yaml:1: keys must be text"),
    "a deep list": ("[" * 5_000, "f.yaml:1: nested more than 40 deep"),
    "a deep mapping": ("{a: " * 5_000, "f.yaml:1: nested more than 40 deep"),
    "deep lines": ("\n".join(" " * i + "a:" for i in range(500)), "f.yaml:41: nested more than"),
    "laughs": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise("abcdefgh")
        ),
        "f.yaml:6: means more than 200,000 values",
    ),
    "an alias of itself": ("a: &a [*a]", "f.yaml:1: alias *a contains itself"),
    "an alias of nothing": ("a: *b", "f.yaml:1: unknown alias *b"),
    "two documents": ("a: b\n---\nc: d", "f.yaml:2: must hold one YAML document"),
    "nothing": ("# only words", "f.yaml:1: the file is empty"),
    "another version": ("%YAML 9.9\n---\na: b", "f.yaml:1: not valid YAML: found incompatible"),
}


@pytest.mark.parametrize("oddity", ODD)
def test_what_cannot_be_read_is_said_where_it_stands(oddity: str) -> None:
    text, what = ODD[oddity]
    _, problems = read(text)
    assert problems and problems[0].startswith(what)


@pytest.mark.parametrize("oddity", ODD)
def test_an_override_is_read_as_carefully(oddity: str) -> None:
    text = ODD[oddity][0]
    with pytest.raises(SweepError, match="command line: seeds"):
        parse("name: x", "f.yaml", [f"seeds={text}"])


def test_more_values_than_a_sweep_has_are_not_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yaml_tree, "MAX_VALUES", 100)
    _, problems = read(f"a: [{', '.join(map(str, range(1_000)))}]")
    assert problems == ["f.yaml:1: means more than 100 values"]
