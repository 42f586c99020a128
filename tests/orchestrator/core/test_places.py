"""Places that users name: what is meant, and what a sweep file may not name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import (
    check_named_by_file,
    database_place,
    file_of,
    sqlite_url,
    store_place,
    user_path,
    variable,
)
from orchestrator.home import Home
from orchestrator.run.job import open_job
from orchestrator.store.store import Store
from orchestrator.study.storage import open_storage
from orchestrator.sweepfile.load import parse

NAMES = (
    "plain",
    "with space",
    "ünï 日本",
    "100%",
    "a#b",
    "what?",
    "a&b=c",
    "[red]",
    "a%20b",
    "q'q\"",
)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of somebody who reads another's sweep file in ~/work."""
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    for name in ("HOME", "STORE", "MLFLOW", "STUDIES"):
        monkeypatch.delenv(f"RESURGE_{name}", raising=False)
    return tmp_path


def test_a_home_is_meant_by_its_sign(reader: Path) -> None:
    assert user_path("~/x", "--home") == reader / "x"
    assert user_path("x/y", "--home") == reader / "work" / "x" / "y"
    assert store_place("~/s", "store") == f"{reader}/s"
    assert store_place("s3://bucket/~x", "store") == "s3://bucket/~x"
    assert database_place("sqlite:///~/m.db", "mlflow") == f"sqlite:///{reader}/m.db"
    assert database_place("sqlite:///m.db", "mlflow") == f"sqlite:///{reader}/work/m.db"
    assert database_place("journal://~/j.log", "x") == f"journal://{reader}/j.log"
    assert database_place("http://host/~x", "mlflow") == "http://host/~x"


@pytest.mark.parametrize("path", ["~nobody-here/x", "~nobody-here"])
def test_a_user_who_is_not_there_is_refused(path: str, reader: Path) -> None:
    for read in (
        lambda: user_path(path, "--home"),
        lambda: store_place(path, "store"),
        lambda: database_place(f"sqlite:///{path}", "mlflow"),
        lambda: Home.find(Path(path)),
    ):
        with pytest.raises(ResurgeError, match="no user 'nobody-here' on this machine"):
            read()


@pytest.mark.parametrize("value", ["", " "])
def test_a_variable_that_is_set_to_nothing_says_nothing(
    value: str, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "STORE", "MLFLOW", "STUDIES", "PLUGINS"):
        monkeypatch.setenv(f"RESURGE_{name}", value)
    assert variable("RESURGE_STORE") is None
    home = Home.find(None)
    assert home.root == reader / "work" / ".resurge"
    assert home.store_location() == str(home.root / "store")
    assert home.mlflow_uri() == f"sqlite:///{home.root}/mlflow.db"


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_where_its_path_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "studies.db"
    url = database_place(sqlite_url(path), "search.storage")
    assert file_of(url) == path
    open_storage(url)
    assert path.read_bytes().startswith(b"SQLite")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    journal = tmp_path / name / "j.log"
    assert file_of(f"journal://{journal}") == journal


def sqlite(path: Path, table: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE {table} (x)")
        database.commit()


SWEEP = """
name: mine
concept: star
edits: [{unlearn: esd}, {finetune: {dataset: related, steps: 5}}]
evaluate: {metrics: [concept_accuracy]}
"""
SEARCH = (
    SWEEP
    + """
search:
  maximize: resurgence
  space: {finetune.learning_rate: {log: [1e-5, 1e-3]}}
"""
)


def named(key: str, place: str) -> str:
    if key == "search.storage":
        return f"{SEARCH}  storage: '{place}'\n"
    return f"{SWEEP}{key}: '{place}'\n"


def url(key: str, path: str) -> list[str]:
    """All ways to say a path."""
    if key == "store":
        return [path, *([f"file://{path}"] if path.startswith("/") else [])]
    ways = [f"sqlite:///{path}", f"sqlite+pysqlite:///{path}"]
    return ways + ([f"journal://{path}"] if key == "search.storage" and path[0] == "/" else [])


KEYS = ("store", "mlflow", "search.storage")
FOREIGN = (
    "~/.bash_aliases",
    "{reader}/.bash_aliases",
    "../.bash_aliases",
    "~/.config/autostart/new.db",
    "~/.new/store.db",
    "{reader}/notes.txt",
    "{reader}/empty.db",
    "{reader}/other.db",
    "dangling.db",
    "linked/new.db",
    "linked/deep/er/new.db",
    "../notes.txt",
    "{reader}/notes.txt/../.profile",
)


def make_foreign(reader: Path) -> dict[Path, bytes]:
    (reader / ".bash_aliases").write_text("alias ll=ls\n")
    (reader / "notes.txt").write_text("mine\n")
    (reader / "empty.db").touch()
    sqlite(reader / "other.db", "photographs")
    (reader / ".config" / "autostart").mkdir(parents=True)
    (reader / "work" / "dangling.db").symlink_to(reader / "nowhere")
    (reader / "work" / "linked").symlink_to(reader / ".config")
    return {p: p.read_bytes() for p in reader.rglob("*") if p.is_file()}


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("key", KEYS)
def test_a_sweep_file_may_not_name_its_readers_files(key: str, path: str, reader: Path) -> None:
    before = make_foreign(reader)
    for place in url(key, path.format(reader=reader)):
        (reader / "work" / "sweep.yaml").write_text(named(key, place))
        for arguments in ((), ("seeds=2",)):
            with pytest.raises(ResurgeError, match=rf"{key}: a sweep file may"):
                open_job("sweep.yaml", arguments, Home.find(None))
    (reader / "work" / "sweep.yaml").unlink()
    assert {p: p.read_bytes() for p in reader.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("key", ["mlflow", "search.storage"])
@pytest.mark.parametrize(
    "place",
    [
        "sqlite:///file:/etc/passwd?uri=true",
        "sqlite:///{reader}/new.sh",
        "sqlite:///Makefile",
        "file:///{reader}/mlruns",
        "duckdb:///x.db",
        "mlruns",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_sweep_file_may_not_name_what_is_no_place_for_it(
    key: str, place: str, reader: Path
) -> None:
    (reader / "work" / "sweep.yaml").write_text(named(key, place.format(reader=reader)))
    with pytest.raises(ResurgeError, match=f"{key}: a sweep file may"):
        open_job("sweep.yaml", (), Home.find(None))


@pytest.mark.parametrize("path", ["new.db", "a/new.db", "{reader}/data/new.db", ".resurge/new.db"])
@pytest.mark.parametrize("key", KEYS)
def test_a_sweep_file_may_name_a_new_place(key: str, path: str, reader: Path) -> None:
    for place in url(key, path.format(reader=reader)):
        (reader / "work" / "sweep.yaml").write_text(named(key, place))
        open_job("sweep.yaml", (), Home.find(None))


@pytest.mark.parametrize("place", ["http://host:5000", "postgresql+psycopg://host/studies"])
def test_a_sweep_file_may_name_a_server(place: str, reader: Path) -> None:
    for key in ("mlflow", "search.storage"):
        (reader / "work" / "sweep.yaml").write_text(named(key, place))
        open_job("sweep.yaml", (), Home.find(None))


def make_store(path: Path) -> str:
    Store(path).put_sweep("known", {"sweep": {}, "source": ""})
    return str(path)


def make_journal(path: Path) -> str:
    open_storage(f"journal://{path}").create_new_study([], "known")
    return f"journal://{path}"


def make_studies(path: Path) -> str:
    open_storage(sqlite_url(path))
    return sqlite_url(path)


def make_mlflow(path: Path) -> str:
    sqlite(path, "experiments")
    return sqlite_url(path)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("store", make_store),
        ("search.storage", make_journal),
        ("search.storage", make_studies),
        ("mlflow", make_mlflow),
    ],
)
def test_a_sweep_file_may_name_what_is_of_its_kind_already(
    key: str, make: Callable[[Path], str], reader: Path
) -> None:
    (reader / ".cache").mkdir()
    place = make(reader / ".cache" / "theirs.txt")
    (reader / "work" / "sweep.yaml").write_text(named(key, place))
    open_job("sweep.yaml", (), Home.find(None))


def test_a_store_may_not_lead_out_by_a_link(reader: Path) -> None:
    make_store(reader / "work" / "theirs")
    (reader / "work" / "theirs" / "objects").symlink_to(reader)
    with pytest.raises(ResurgeError, match="is not a store of Resurge's"):
        check_named_by_file("store", str(reader / "work" / "theirs"), [reader / "work"])


@pytest.mark.parametrize("key", KEYS)
def test_the_command_line_may_name_any_place(key: str, reader: Path) -> None:
    make_foreign(reader)
    (reader / "work" / "sweep.yaml").write_text(SEARCH)
    for place in url(key, f"{reader}/.hidden/new"):
        job = open_job("sweep.yaml", (f"{key}={place}",), Home.find(None))
        assert job.sweep.on_command_line == {key}


def test_the_environment_may_name_any_place(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESURGE_STORE", "~/.hidden/store")
    monkeypatch.setenv("RESURGE_STUDIES", "journal:///x/.hidden/j")
    home = Home.find(None)
    assert home.store_location(parse(SEARCH)) == f"{reader}/.hidden/store"
    assert home.studies_uri(parse(SEARCH)) == "journal:///x/.hidden/j"
