"""Where things live: one folder, `.resurge/`, unless the sweep or the environment names another."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import (
    PlaceKind,
    check_named_by_file,
    database_place,
    sqlite_url,
    store_place,
    user_path,
    variable,
)

NEEDED_BYTES = 1 << 20
"""What must be free in a home for a run to begin: logs, and MLflow's database of a small sweep."""


class Places(Protocol):
    """Where a sweep says that its things are kept; None where it leaves that to the home."""

    @property
    def store(self) -> str | None: ...

    @property
    def mlflow(self) -> str | None: ...

    @property
    def storage(self) -> str | None: ...

    @property
    def on_command_line(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Home:
    """Local state. Everything outside `root` is the user's.

    Seen from another machine than the `cluster` that runs the sweeps, there is no local state: its
    `store`, `mlflow` and `studies` must be named, and stand before the environment's.
    """

    root: Path
    cluster: str | None = None
    store: str | None = None
    mlflow: str | None = None
    studies: str | None = None

    @classmethod
    def find(cls, option: Path | None) -> Home:
        """`--home`, else RESURGE_HOME, else `.resurge` in the working directory."""
        if option is not None:
            return cls(user_path(option, "--home"))
        return cls(user_path(variable("RESURGE_HOME") or ".resurge", "RESURGE_HOME"))

    def store_location(self, sweep: Places | None = None) -> str:
        """The sweep's `store`, else the cluster's, RESURGE_STORE, the folder `store`."""
        chosen = sweep.store if sweep else None
        found = store_place(chosen or self._place("store", str(self.root / "store")), "store")
        self._check(sweep, "store", chosen, found)
        return found

    def mlflow_uri(self, sweep: Places | None = None) -> str:
        """The sweep's `mlflow`, else the cluster's, RESURGE_MLFLOW, the file `mlflow.db`."""
        chosen = sweep.mlflow if sweep else None
        local = sqlite_url(self.root / "mlflow.db")
        found = database_place(chosen or self._place("mlflow", local), "mlflow")
        self._check(sweep, "mlflow", chosen, found)
        return found

    def studies_uri(self, sweep: Places) -> str:
        """The search's `storage`, else the cluster's, RESURGE_STUDIES, the file `studies.db`."""
        chosen = sweep.storage
        local = sqlite_url(self.root / "studies.db")
        found = database_place(chosen or self._place("studies", local), "search.storage")
        self._check(sweep, "search.storage", chosen, found)
        return found

    def check(self, sweep: Places) -> None:
        """Refuse what the sweep's file names and may be a file of its reader's.

        Raises:
            ResurgeError: see `check_named_by_file`.
        """
        if sweep.store:
            self.store_location(sweep)
        if sweep.mlflow:
            self.mlflow_uri(sweep)
        if sweep.storage:
            self.studies_uri(sweep)

    def check_writable(self) -> None:
        """Raise if a run could not keep its logs and results here: now, not after hours of work.

        Raises:
            ResurgeError: it is no folder, may not be written to, or is on a full disk.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(bytes(NEEDED_BYTES))
                probe.flush()
        except OSError as error:
            is_file = isinstance(error, FileExistsError | NotADirectoryError)
            why = "it is no folder" if is_file else error.strerror
            raise ResurgeError(
                f"cannot write into the home {self.root}, which takes logs and results: "
                f"{why}. Mend that, or name another: --home or RESURGE_HOME"
            ) from error

    def _check(self, sweep: Places | None, kind: PlaceKind, chosen: str | None, found: str) -> None:
        if sweep is not None and chosen and kind not in sweep.on_command_line:
            check_named_by_file(kind, found, (self.root, Path.cwd()))

    def _place(self, setting: str, local: str) -> str:
        """The cluster's, else the environment's, else the local one."""
        name = f"RESURGE_{setting.upper()}"
        if chosen := getattr(self, setting) or variable(name):
            return str(chosen)
        if self.cluster is not None:
            raise ResurgeError(
                f"this machine cannot see into the head of cluster {self.cluster!r}: set "
                f"`{setting}:` in the cluster's entry, or {name}"
            )
        return local

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, where MLflow is the SQLite file."""
        return self.root / "mlartifacts"

    def logs(self, name: str) -> Path:
        """The folder of a sweep's task logs."""
        return self.root / "logs" / name

    def results(self, name: str) -> Path:
        """A sweep's results, one row a trial."""
        return self.root / "results" / f"{name}.parquet"

    def sync_mark(self, name: str) -> Path:
        """A digest of what MLflow was last told of a sweep."""
        return self.root / "synced" / name
