"""Every name and value that a user can think of becomes one that MLflow takes."""

import random
import sys

import pytest
from mlflow.utils import validation

from orchestrator.tracking.names import experiment_name, legal_name, legal_title, legal_value

ORDINARY = (
    "retained.Claude Monet (1840-1926)",
    "retained.O'Keeffe",
    'retained.the "blue" period',
    "retained.AC/DC",
    "retained.50%",
    "retained.a+b",
    "retained.C#",
    "retained.梵高",
    "retained.Café",
    "retained.Cafe\u0301",
    "retained.हिन्दी",
    "retained.🌻",
    "retained.",
    "retained.a/../b",
    "retained./etc",
    "retained.a//b",
    "retained.a/",
    "retained.a\n",
    "retained.\0",
    "retained.\ud800",
    "retained." + "x" * 400,
    "retained." + "x" * 401,
    "",
    ".",
    "..",
    "../x",
    "/",
    " ",
)
"""What concepts and metrics may be called."""
DRAWN = 3_000


def drawn_names() -> list[str]:
    """Seeded: any characters at all, and such as are near what is legal."""
    rng = random.Random(15)
    near = "aZ09_-. :/\\'\"()%`\n\té(ß梵🌻\u0301\0\ud800"
    names = []
    for _ in range(DRAWN):
        length = rng.choice((1, 2, 3, 8, 30, 249, 250, 251, 600))
        if rng.random() < 0.5:
            names.append("".join(rng.choice(near) for _ in range(length)))
        else:
            names.append("".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(length)))
    return list(dict.fromkeys([*ORDINARY, *names]))


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Each once, with those that they become: these are names, too."""
    found = drawn_names()
    return list(dict.fromkeys([*found, *map(legal_name, found)]))


def test_mlflow_takes_every_name(names: list[str]) -> None:
    for name in map(legal_name, names):
        validation._validate_metric(name, 0.5, 0, 0)
        validation._validate_param(name, "1")
        validation._validate_tag(name, "1")
        validation._validate_experiment_tag(name, "1")
        name.encode()
        assert name == name.strip("\n") and "\0" not in name


def test_no_two_names_become_one(names: list[str]) -> None:
    assert len(set(map(legal_name, names))) == len(names)


def test_a_name_is_always_called_the_same() -> None:
    assert legal_name("retained.O'Keeffe") == "retained.O_Keeffe e477e421"


@pytest.mark.parametrize("name", ["resurgence", "retained.star", "a b/c:d-e_f", "retained.Café"])
def test_a_legal_name_stays(name: str) -> None:
    assert legal_name(name) == name


def test_what_is_readable_stays_readable() -> None:
    assert legal_name("retained.Claude Monet (1840-1926)").startswith(
        "retained.Claude Monet _1840-1926_ "
    )


def test_mlflow_cuts_no_value_that_we_send() -> None:
    for value in ["short", "x" * 7_000, "梵" * 7_000, "a\0b", "\ud800", *drawn_names()]:
        legal = legal_value(value)
        assert validation._validate_param("name", legal).value == legal
        assert validation._validate_tag("name", legal).value == legal
        legal.encode()
        assert "\0" not in legal


def test_a_value_that_is_cut_says_so() -> None:
    assert "cut, 7000 characters" in legal_value("x" * 7_000)
    assert legal_value("short") == "short"


def test_a_run_is_called_by_one_line() -> None:
    for name in drawn_names():
        line = legal_title(name, "key")
        assert 0 < len(line) <= 250 and len(line.splitlines()) == 1
        line.encode()
    assert legal_title(" \n", "key") == "key"


def test_a_sweep_has_an_experiment_of_its_own() -> None:
    assert experiment_name("quickstart") == "quickstart"
    assert experiment_name("Default") not in ("Default", "default")
