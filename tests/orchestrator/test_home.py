"""Where things live: who has the word on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.sweepfile.load import parse

SWEEP = """
name: mine
concept: star
edits: [{unlearn: esd}, {finetune: {dataset: related}}]
evaluate: {metrics: [concept_accuracy]}
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "STORE", "MLFLOW", "STUDIES"):
        monkeypatch.delenv(f"RESURGE_{name}", raising=False)


def test_everything_is_below_the_home_unless_it_is_said_to_be_elsewhere() -> None:
    home, sweep = Home(Path("/home")), parse(SWEEP)
    assert home.store_location(sweep) == "/home/store"
    assert home.mlflow_uri(sweep) == "sqlite:////home/mlflow.db"
    assert home.studies_uri(sweep) == "sqlite:////home/studies.db"


def test_the_sweep_stands_before_the_cluster_and_that_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESURGE_STORE", "/environment")
    monkeypatch.setenv("RESURGE_MLFLOW", "http://environment")
    monkeypatch.setenv("RESURGE_STUDIES", "sqlite:////environment.db")
    home = Home(Path("/home"))
    far = Home(Path("/home"), "lab", "/lab", "http://lab", "sqlite:////lab.db")
    sweep, own = parse(SWEEP), parse(f"{SWEEP}store: /own\nmlflow: http://own\n")
    places = [
        (where.store_location(of), where.mlflow_uri(of), where.studies_uri(of))
        for where, of in ((home, sweep), (far, sweep), (far, own))
    ]
    assert places == [
        ("/environment", "http://environment", "sqlite:////environment.db"),
        ("/lab", "http://lab", "sqlite:////lab.db"),
        ("/own", "http://own", "sqlite:////lab.db"),
    ]


def test_a_cluster_has_no_local_state() -> None:
    far, sweep = Home(Path("/home"), "lab"), parse(SWEEP)
    for setting, look in (
        ("store", far.store_location),
        ("mlflow", far.mlflow_uri),
        ("studies", far.studies_uri),
    ):
        with pytest.raises(ResurgeError, match=f"set `{setting}:` .* or RESURGE_{setting.upper()}"):
            look(sweep)
