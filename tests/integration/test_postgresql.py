"""Studies on a real PostgreSQL: what is its own. What studies do on any storage: test_study.py."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.study.dashboard import studies_app
from orchestrator.study.study import Study
from orchestrator.sweep.search import Confirm, Goal, Search, SearchSettings
from orchestrator.sweep.space import Range, Space

pytest_plugins = ["tests.integration.postgresql_server"]
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.* experimental")]

SPACE = Space((Range("rate", 1e-5, 1e-2, log=True),))


def opened(url: str) -> Study:
    search = Search((Goal("y"),), (), SPACE, (), SearchSettings(), Confirm(), {})
    return Study(url, "study", search, SPACE)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("postgres:@", "nobody:s3cret@", 'role "nobody" does not exist'),
        ("/studies", "/missing", 'database "missing.*" does not exist'),
        ("+psycopg://", "+psycopg2://", "install appropriate one"),
    ],
)
def test_a_server_that_lets_nobody_in_says_why(
    postgresql: str, right: str, wrong: str, said: str
) -> None:
    assert right in postgresql
    url = postgresql.replace(right, wrong).replace("postgres:@", "postgres:s3cret@")
    with pytest.raises(ResurgeError, match=f"cannot be used: .*{said}") as caught:
        opened(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_studies_are_alone_in_their_database(postgresql: str, new_database: object) -> None:
    assert callable(new_database)
    study = opened(postgresql)
    assert study.ask() is not None
    assert opened(new_database()).tried() == []
    assert callable(studies_app(postgresql))
