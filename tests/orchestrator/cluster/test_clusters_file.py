"""Which cluster is meant, and with which token: clusters.yaml and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.clusters_file import Cluster, ClustersError, find_cluster, is_address
from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.sweepfile.load import parse

ENTRY = """clusters:
  lab:
    address: "http://head:8265/"
    token_file: ~/lab.token
    store: s3://resurge/store
    mlflow: http://mlflow:5000
"""
SECRETS = """clusters:
  lab:
    address: "http://head:8265"
    token: s3cretT0ken
  sea:
    address: "http://ann:hunter22@head:8265"
    mlflow: "http://ann:hunter22@mlflow:5000"
    token_file: s3cretT0ken
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any setting."""
    for name in ("RESURGE_CLUSTERS", "XDG_CONFIG_HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RESURGE_STORE", "RESURGE_MLFLOW", "RESURGE_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def never(text: str) -> None:
    raise AssertionError(text)


def test_entries_are_found_by_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".config/resurge/clusters.yaml", ENTRY)
    cluster = find_cluster("lab")
    assert cluster.entry.address == "http://head:8265"
    assert cluster.entry.home == "~/.resurge"
    assert str(cluster) == "lab (http://head:8265)"
    with pytest.raises(ResurgeError, match="no cluster is called 'labb'; did you mean 'lab'"):
        find_cluster("labb")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    with pytest.raises(ResurgeError, match=r"elsewhere/resurge/clusters\.yaml has none"):
        find_cluster("lab")
    named = write(home / "mine.yaml", ENTRY)
    monkeypatch.setenv("RESURGE_CLUSTERS", str(named))
    assert find_cluster("lab").entry.store == "s3://resurge/store"


def test_an_address_is_a_cluster_too() -> None:
    assert find_cluster("https://head:8265/").entry.address == "https://head:8265"
    assert str(find_cluster("http://head:8265")) == "http://head:8265"
    with pytest.raises(ResurgeError, match="which cluster"):
        find_cluster(None)
    with pytest.raises(ResurgeError, match="a cluster's address must be") as caught:
        find_cluster("http://ann:hunter22@head:8265")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["head:8265", "ray://head:10001", "http://", "http://head:x", "http://h/path", "http://u@h"],
)
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)


def test_everything_wrong_is_said_at_once_with_its_line(home: Path) -> None:
    text = "clusters:\n  lab: {adress: http://h:1}\n  sea: {address: head:8265, home: here}\n"
    path = write(home / ".config/resurge/clusters.yaml", text)
    with pytest.raises(ClustersError) as caught:
        find_cluster("lab")
    said = str(caught.value)
    assert f"{path}:2: clusters.lab.adress: unknown key; did you mean 'address'?" in said
    assert f"{path}:3: clusters.sea" in said
    assert "must be http://host:port" in said
    assert "must be a whole path on the head" in said


def test_secrets_in_the_file_are_refused_and_not_repeated(home: Path) -> None:
    write(home / ".config/resurge/clusters.yaml", SECRETS)
    with pytest.raises(ClustersError) as caught:
        find_cluster("lab")
    said = str(caught.value)
    assert "s3cretT0ken" not in said
    assert "hunter22" not in said
    for line, what in [
        (4, "clusters.lab.token: secrets do not belong into this file"),
        (6, "clusters.sea.address: carries a password"),
        (7, "clusters.sea.mlflow: carries a password"),
        (8, "clusters.sea.token_file: must be a file's whole path"),
    ]:
        assert f"clusters.yaml:{line}: {what}" in said


def test_the_token_comes_from_the_entry_then_from_where_ray_looks(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = find_cluster("http://head:8265")
    assert bare.token(never) is None
    write(home / ".ray/auth_token", "default\n")
    assert value(bare) == "default"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(write(home / "path.token", "by-path")))
    assert value(bare) == "by-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "by-value")
    assert value(bare) == "by-value"
    write(home / ".config/resurge/clusters.yaml", ENTRY)
    write(home / "lab.token", "the-labs")
    assert value(find_cluster("lab")) == "the-labs"


def value(cluster: Cluster) -> str:
    token = cluster.token(never)
    assert token is not None
    assert token.value not in repr(token)
    return token.value


def test_a_token_that_others_can_read_is_warned_of(home: Path) -> None:
    write(home / ".ray/auth_token", "default", mode=0o644)
    warnings: list[str] = []
    find_cluster("http://head:8265").token(warnings.append)
    assert len(warnings) == 1
    assert "chmod 600" in warnings[0]
    assert "default" not in warnings[0]


def test_a_token_file_that_is_not_there_or_empty_is_an_error(home: Path) -> None:
    write(home / ".config/resurge/clusters.yaml", ENTRY)
    with pytest.raises(ResurgeError, match=r"token_file: .*lab.token cannot be read"):
        find_cluster("lab").token(never)
    write(home / "lab.token", "\n")
    with pytest.raises(ResurgeError, match="is empty"):
        find_cluster("lab").token(never)


def test_a_clusters_places_stand_before_the_environments_and_behind_the_sweeps(
    home: Path, monkeypatch: pytest.MonkeyPatch, small: str, calls: object
) -> None:
    write(home / ".config/resurge/clusters.yaml", ENTRY)
    monkeypatch.setenv("RESURGE_STORE", "/environment")
    place = find_cluster("lab").at(Home(home))
    assert place.store_location() == "s3://resurge/store"
    assert place.store_location(parse(small + "store: /sweeps\n")) == "/sweeps"
    bare = find_cluster("http://head:8265").at(Home(home))
    assert bare.store_location() == "/environment"
    with pytest.raises(
        ResurgeError, match="set `mlflow:` in the cluster's entry, or RESURGE_MLFLOW"
    ):
        bare.mlflow_uri()
