"""`resurge reproduce` and `resurge diff`: a number made again, and set beside another."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.audit.compare import difference, settings_that_differ
from orchestrator.audit.find_trial import Found, find_trial
from orchestrator.audit.reproduce import reproduce
from orchestrator.cli.show.trial import show_difference, show_origin, show_reproduction
from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.run.job import open_job
from orchestrator.run.run import run_job
from orchestrator.store.paths import RECORDS, json_path
from orchestrator.store.store import Store
from tests.conftest import RECORDING

pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, small: str) -> Path:
    """The home of a sweep of two methods, each fine-tuned and not, that has been run."""
    folder = tmp_path_factory.mktemp("ran")
    path = folder / "small.yaml"
    path.write_text(small)
    given = ("seeds=1", "finetune.learning_rate=1e-3", "finetune.steps=[0,2]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESURGE_PLUGINS", str(RECORDING))
        patch.setenv("RESURGE_TEST_CALLS", str(folder / "calls.txt"))
        place = Home(folder / "home")
        assert run_job(open_job(str(path), given, place), quiet()).ok
    return place.root


@pytest.fixture
def home(ran: Path, tmp_path: Path) -> Home:
    """A copy of it to do as one likes with."""
    shutil.copytree(ran, tmp_path / "home")
    return Home(tmp_path / "home")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(show: object, *arguments: object) -> str:
    console = quiet()
    show(*arguments, console)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined]


def trials(home: Home, **chosen: object) -> list[Found]:
    job = open_job("small", (), home)
    return [
        find_trial(planned.key, home)
        for planned in job.plan.trials
        if not planned.is_control
        and all(planned.trial.params[k.replace("_", ".")] == v for k, v in chosen.items())
    ]


def test_every_trial_comes_out_identical(home: Home) -> None:
    for found in trials(home):
        result = reproduce(found, False, quiet())
        assert result.is_identical
        assert result.differences
        assert result.same_pictures == result.pictures > 0
        assert not result.moved


def test_only_the_last_edit_is_made_again_unless_all_is_asked_for(home: Home) -> None:
    [found] = trials(home, unlearn_method="shake", finetune_steps=2)
    kinds = [label.split()[0] for label in reproduce(found, False, quiet()).again]
    assert kinds == ["finetune", "sample", "score"]
    kinds = [label.split()[0] for label in reproduce(found, True, quiet()).again]
    assert kinds == ["prepare", "unlearn", "finetune", "sample", "score"]


def test_the_store_is_left_as_it_was(home: Home, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {path for path in (home.root / "store").rglob("*") if path.is_file()}

    before = files()
    reproduce(trials(home)[0], True, quiet())
    assert files() == before


def test_a_number_that_does_not_come_out_again_is_shown(home: Home) -> None:
    [found] = trials(home, unlearn_method="nudge", finetune_steps=2)
    [score] = found.planned.final.scores
    store = Store(home.store_location())
    path = json_path(RECORDS, score.key)
    record = store.read_json(path)
    assert record is not None
    record["metrics"]["erased"] += 0.25
    store.put_json(path, record)
    result = reproduce(find_trial(found.planned.key, home), False, quiet())
    assert not result.is_identical
    text = printed(show_reproduction, result)
    assert "brightness.erased" in text
    assert "-0.25" in text
    assert f"{result.pictures} of {result.pictures} pictures are the same" in text


def test_the_origin_names_settings_seeds_versions_and_data(home: Home) -> None:
    [found] = trials(home, unlearn_method="shake", finetune_steps=2)
    text = printed(show_origin, found)
    for part in (found.planned.digest, "weight_decay 0.01", "dots", "seed 0", "torch", "threads"):
        assert part in text
    assert found.planned.final.sample.key in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("abc", "6 or more digits"),
        ("no-such-trial", "6 or more digits"),
        ("0123456789abcdef", "no trial"),
        ("0" * 32, "no trial"),
    ],
)
def test_a_name_that_means_no_trial_is_refused(home: Home, name: str, said: str) -> None:
    with pytest.raises(ResurgeError, match=said):
        find_trial(name, home)


def test_a_run_of_mlflow_leads_to_its_trial(home: Home) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(home.mlflow_uri())
    [experiment] = [e for e in client.search_experiments() if e.name == "small"]
    runs = client.search_runs([experiment.experiment_id])
    tagged = [run for run in runs if "resurge.trial" in run.data.tags]
    assert tagged
    for run in tagged:
        found = find_trial(run.info.run_id, home)
        assert found.planned.digest == run.data.tags["resurge.trial"]
    [other] = [run for run in runs if "resurge.trials" in run.data.tags]
    with pytest.raises(ResurgeError, match="no trial's"):
        find_trial(other.info.run_id, home)


def test_a_trial_without_scores_cannot_be_made_again(home: Home) -> None:
    [found] = trials(home, unlearn_method="nudge", finetune_steps=2)
    [score] = found.planned.final.scores
    (Path(Store(home.store_location()).root) / "records" / f"{score.key}.json").unlink()
    with pytest.raises(ResurgeError, match="resurge run small"):
        reproduce(find_trial(found.planned.key, home), False, quiet())


def test_a_difference_names_what_was_changed_and_what_that_did(home: Home) -> None:
    [one] = trials(home, unlearn_method="nudge", finetune_steps=2)
    [other] = trials(home, unlearn_method="shake", finetune_steps=2)
    rows = list(settings_that_differ(one, other))
    assert ("unlearn: plug-in", "nudge", "shake") in rows
    assert not any("finetune" in row[0] for row in rows)  # the recipe is the same
    estimate = difference(one, other)
    assert estimate is not None
    gap = other.measured.final.erased - one.measured.final.erased  # type: ignore[operator]
    assert estimate.value == pytest.approx(gap)
    text = printed(show_difference, one, other)
    assert "shake" in text and "paired by picture" in text


def test_a_trial_does_not_differ_from_itself(home: Home) -> None:
    found = trials(home)[0]
    assert list(settings_that_differ(found, found)) == []
    assert "nothing differs" in printed(show_difference, found, found)
