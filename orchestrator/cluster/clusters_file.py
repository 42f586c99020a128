"""Which cluster is meant: an entry of clusters.yaml, or an address; and its token.

    clusters:
      lab:
        address: "http://head:8265"
        token_file: ~/.config/resurge/lab.token
        store: s3://resurge/store
        mlflow: http://mlflow:5000

The file is ~/.config/resurge/clusters.yaml (XDG_CONFIG_HOME is honoured), or the one that
RESURGE_CLUSTERS names. It holds no secret.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from orchestrator.config.fields import fill, known
from orchestrator.config.yaml_tree import At, read_yaml
from orchestrator.core.errors import Problem, ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.places import user_path
from orchestrator.core.redact import has_credentials
from orchestrator.core.settings import Settings
from orchestrator.home import Home

VARIABLE, FILE_VARIABLE = "RESURGE_CLUSTER", "RESURGE_CLUSTERS"
HEAD_HOME = "~/.resurge"
_SECRET_KEY = re.compile(r"(?i)token|password|passwd|secret|key|credential")
_HEAD_FOLDER = re.compile(r"(/|~(/|$)).*")


class ClusterEntry(Settings):
    """A cluster as clusters.yaml describes it."""

    address: str = Field(description="the head's dashboard: http://host:8265")
    token_file: str | None = Field(None, description="a file with Ray's token, mode 600")
    store: str | None = Field(None, description="where its sweeps' results are; as RESURGE_STORE")
    mlflow: str | None = Field(None, description="its MLflow server; as RESURGE_MLFLOW")
    studies: str | None = Field(None, description="its studies' database; as RESURGE_STUDIES")
    home: str = Field(HEAD_HOME, description="the head's folder for its local state")

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not is_address(address):
            raise ValueError("must be http://host:port or https://host:port, and nothing more")
        return address.rstrip("/")

    @field_validator("home")
    @classmethod
    def _is_whole(cls, home: str) -> str:
        if not _HEAD_FOLDER.fullmatch(home):
            raise ValueError("must be a whole path on the head: /folder or ~/folder")
        return home


@dataclass(frozen=True)
class Token:
    """Ray's token, and where it came from, for errors. It is never shown."""

    value: str = dataclasses.field(repr=False)
    origin: str


@dataclass(frozen=True)
class Cluster:
    """A cluster as the user named it: an entry's name, or an address."""

    name: str
    entry: ClusterEntry

    def token(self, warn: Callable[[str], None]) -> Token | None:
        """The entry's token, else the one that Ray's own tools would send; None if there is none.

        Raises:
            ResurgeError: a file that should hold one cannot be read, or is empty.
        """
        if self.entry.token_file is not None:
            return _read_token(self.entry.token_file, f"cluster {self.name!r}: token_file", warn)
        if value := os.environ.get("RAY_AUTH_TOKEN"):
            return Token(value.strip(), "RAY_AUTH_TOKEN")
        if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
            return _read_token(path, "RAY_AUTH_TOKEN_PATH", warn)
        default = Path.home() / ".ray" / "auth_token"
        return _read_token(str(default), "Ray's own token file", warn) if default.exists() else None

    def at(self, home: Home) -> Home:
        """The home seen from this machine: the cluster's store, MLflow and studies."""
        entry = self.entry
        return dataclasses.replace(
            home,
            cluster=self.name,
            store=entry.store,
            mlflow=entry.mlflow,
            studies=entry.studies,
        )

    def __str__(self) -> str:
        address = self.entry.address
        return self.name if self.name == address else f"{self.name} ({address})"


class ClustersError(ResurgeError):
    """A file of clusters with everything that is wrong in it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        lines = [f"{count} in the clusters' file", *(f"  {p}" for p in problems)]
        super().__init__("\n".join(lines))


def find_cluster(named: str | None) -> Cluster:
    """The cluster of --cluster or RESURGE_CLUSTER: an entry's name, or http://host:port.

    Raises:
        ResurgeError: none is named, or there is no such entry.
        ClustersError: the file is wrong.
    """
    if not named:
        raise ResurgeError(
            f"which cluster? Say --cluster NAME, --cluster http://host:8265, or set {VARIABLE}. "
            f"Names stand in {clusters_file()}"
        )
    if "://" in named:
        if not is_address(named):
            raise ResurgeError(
                "a cluster's address must be http://host:port or https://host:port and nothing "
                "more; a token comes from a file or the environment"
            )
        address = named.rstrip("/")
        return Cluster(address, ClusterEntry(address=address))
    entries = read_clusters(clusters_file())
    if named not in entries:
        there = suggest(named, list(entries)) or f"; {clusters_file()} has none"
        raise ResurgeError(
            f"no cluster is called {named!r}{there}. An address does as well: http://host:8265"
        )
    return Cluster(named, entries[named])


def clusters_file() -> Path:
    """The file with the clusters' entries, whether there is one or not."""
    if chosen := os.environ.get(FILE_VARIABLE):
        return user_path(chosen, "RESURGE_CLUSTERS")
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "resurge" / "clusters.yaml"


def read_clusters(path: Path) -> dict[str, ClusterEntry]:
    """The entries by name; none if there is no such file.

    Raises:
        ClustersError: with everything that is wrong in it; no secret is repeated.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClustersError([Problem(f"cannot be read: {error}", "", str(path))]) from error
    problems: list[Problem] = []
    found: dict[str, ClusterEntry] = {}
    root = read_yaml(text, str(path), problems)
    if root is not None:
        top = known(At(root, "", str(path), problems), ("clusters",), ("clusters",))
        if "clusters" in top and not isinstance(top["clusters"].value, dict):
            top["clusters"].say("must map names to clusters: `lab: {address: http://host:8265}`")
        elif "clusters" in top:
            made = {name: _entry(top["clusters"].key(name)) for name in top["clusters"].value}
            found = {name: entry for name, entry in made.items() if entry is not None}
    if problems:
        raise ClustersError(sorted(dict.fromkeys(problems), key=lambda p: p.line or 0))
    return found


def is_address(text: str) -> bool:
    """Whether it is http://host[:port], without credentials, path or query."""
    try:
        parts = urlsplit(text)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_bare = parts.path in ("", "/") and not parts.query and not parts.fragment
    is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_web and port_is_sound and is_bare and "@" not in parts.netloc


def _entry(at: At) -> ClusterEntry | None:
    before = len(at.problems)
    if isinstance(at.value, dict):
        # What looks like a secret is reported, and not repeated.
        for key, node in at.value.items():
            if key not in ClusterEntry.model_fields and _SECRET_KEY.search(key):
                at.say_key(
                    key,
                    "secrets do not belong into this file: write the token into a file of its "
                    "own, mode 600, and name that in `token_file`; other credentials live on the "
                    "cluster's machines",
                )
            elif isinstance(node.value, str) and has_credentials(node.value):
                at.say_key(
                    key,
                    "carries a password in its URL: leave it out; it belongs into the "
                    "environment of the cluster's machines (MLFLOW_TRACKING_USERNAME and "
                    "_PASSWORD, PGPASSFILE)",
                )
            elif key == "token_file" and isinstance(node.value, str) and "/" not in node.value:
                at.say_key(key, "must be a file's whole path, not the token itself: ~/.config/…")
    given = known(at, ClusterEntry.model_fields) if len(at.problems) == before else {}
    if len(at.problems) > before:
        return None
    return fill(ClusterEntry, given, at)


def _read_token(path: str, what: str, warn: Callable[[str], None]) -> Token:
    file = user_path(path, what)
    try:
        value = file.read_text("utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ResurgeError(f"{what}: {file} cannot be read: {why}") from error
    if not value:
        raise ResurgeError(f"{what}: {file} is empty; `ray get-auth-token` prints the head's token")
    if mode & 0o077:
        warn(f"{file} holds a token and others can read it: chmod 600 {file}")
    return Token(value, str(file))
