"""A job: what it looks up, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.cluster import name_of
from orchestrator.core.errors import ResurgeError, SweepError
from orchestrator.home import Home
from orchestrator.run.job import Job, open_job, open_results
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


def remarks(job: Job) -> list[str]:
    return list(job.remarks())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda small: small, ""),
        (lambda small: small + "keep: []\n", ""),
        (lambda small: small.replace("seeds: 2", "seeds: [0, 1]"), ""),
        (lambda small: small.replace("nudge,", "{nudge: {amount: 0.01}},"), "edits"),
        (lambda small: small.replace("seeds: 2", "seeds: 3"), "seeds"),
        (lambda small: small.replace("star", "heart"), "concept"),
        (lambda small: small.replace("images_per_prompt: 1", "images_per_prompt: 2"), "evaluate"),
    ],
)
def test_a_file_that_is_not_what_was_run_says_so(
    text: Callable[[str], str], said: str, home: Home, small: str, tmp_path: Path
) -> None:
    Job(parse(small), home).remember()
    path = tmp_path / "small.yaml"
    path.write_text(text(small))
    job = open_results(str(path), home)
    if not said:
        assert remarks(job) == []
        return
    assert remarks(job) == [
        f"{path} is not what was run last under the name 'small' (another {said}): what follows "
        "is of the file as it is now; resurge results small shows what was run"
    ]


def test_overrides_are_part_of_what_was_run(home: Home, small: str, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(small)
    open_job(str(path), ("seeds=1",), home).remember()
    [remark] = remarks(open_results(str(path), home))
    assert "(another seeds)" in remark
    assert {t.trial.seed for t in open_results("small", home).plan.trials} == {0}


def test_a_file_whose_inputs_are_gone_reads_what_was_run(
    home: Home, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(small)
    open_job(str(path), (), home).remember()
    trials = [trial.digest for trial in open_job(str(path), (), home).plan.trials]
    monkeypatch.delenv("RESURGE_PLUGINS")
    job = open_results(str(path), home)
    assert [trial.digest for trial in job.plan.trials] == trials
    [remark] = remarks(job)
    assert remark.startswith(f"{path} cannot be planned here now ({path}:3: base: unknown base")
    path.write_text(small.replace("seeds: 2", "seeds: 3"))  # not what was run: no way to tell
    with pytest.raises(SweepError):
        open_results(str(path), home)


def test_a_damaged_plan_is_made_again_and_said(home: Home, small: str) -> None:
    job = Job(parse(small), home)
    job.remember()
    known = job.store.sweep("small")
    assert known is not None
    job.store.put_sweep("small", {**known, "plan": known["plan"][:-7]})
    again = open_results("small", home)
    assert [t.digest for t in again.plan.trials] == [t.digest for t in job.plan.trials]
    [remark] = remarks(again)
    assert "of sweep 'small' its plan is damaged" in remark


def test_a_sweep_that_an_earlier_resurge_ran_is_planned_anew(home: Home, small: str) -> None:
    job = Job(parse(small), home)
    job.store.put_sweep("small", {"sweep": job.sweep.canonical(), "source": small})
    again = open_results("small", home)
    assert [t.digest for t in again.plan.trials] == [t.digest for t in job.plan.trials]
    assert remarks(again) == []


def test_a_folder_of_the_sweeps_name_is_no_sweep_file(
    home: Home, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job(parse(small), home).remember()
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    assert open_results("small", home).name == "small"
    assert open_job("small", (), home).name == "small"


def test_a_clusters_sweep_file_has_its_name_whatever_became_of_its_inputs(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(small)
    monkeypatch.delenv("RESURGE_PLUGINS")
    assert name_of(str(path)) == "small"
    assert name_of("small") == "small"
    path.write_text("name: [")
    with pytest.raises(SweepError):
        name_of(str(path))
