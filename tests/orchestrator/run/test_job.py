"""A job: what it looks up, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.run.job import Job, open_job
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("RESURGE_STORE", "RESURGE_MLFLOW", "RESURGE_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "home")


def test_a_known_sweep_works_on_the_store_that_knows_it(home: Home, small: str) -> None:
    Job(parse(small), home).remember()
    store = Store(home.store_location())
    job = open_job("small", ("seeds=3",), home, store)
    assert job.store is store
    assert job.sweep.seeds == (0, 1, 2)
    assert job.sweep.source == small
    assert open_job("small", (), home).store.location == store.location


def test_a_sweep_with_a_store_of_its_own_works_on_that(
    home: Home, small: str, tmp_path: Path
) -> None:
    place = str(tmp_path / "elsewhere")
    job = Job(parse(f"{small}store: {place}\n"), home, Store(home.store_location()))
    assert job.store.location == place


def test_what_is_not_known_is_named(home: Home, small: str) -> None:
    with pytest.raises(ResurgeError, match="'smal'; none has been run yet"):
        open_job("smal", (), home)
    Job(parse(small), home).remember()
    with pytest.raises(ResurgeError, match=r"'smal'; did you mean 'small'\?"):
        open_job("smal", (), home)


def test_a_far_home_is_asked_for_no_more_than_is_needed(tmp_path: Path, small: str) -> None:
    job = Job(parse(small), Home(tmp_path, cluster="lab"))
    assert job.plan.trials
    asked: tuple[Callable[[], object], ...] = (lambda: job.store, lambda: job.mlflow_uri)
    for ask in asked:
        with pytest.raises(ResurgeError, match="cannot see into the head of cluster 'lab'"):
            ask()
