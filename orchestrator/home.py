"""Where things live: one folder, `.resurge/`, unless the sweep or the environment names another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.sweep import Sweep


@dataclass(frozen=True)
class Home:
    """Local state. Everything outside `root` is the user's."""

    root: Path

    @classmethod
    def find(cls, option: Path | None) -> Home:
        """`--home`, else RESURGE_HOME, else `.resurge` in the working directory."""
        return cls((option or Path(os.environ.get("RESURGE_HOME", ".resurge"))).absolute())

    def store_location(self, sweep: Sweep | None = None) -> str:
        """The sweep's `store`, else RESURGE_STORE, else the folder `store`."""
        chosen = (sweep.store if sweep else None) or os.environ.get("RESURGE_STORE")
        return chosen or str(self.root / "store")

    def mlflow_uri(self, sweep: Sweep | None = None) -> str:
        """The sweep's `mlflow`, else RESURGE_MLFLOW, else the SQLite file `mlflow.db`."""
        chosen = (sweep.mlflow if sweep else None) or os.environ.get("RESURGE_MLFLOW")
        return chosen or f"sqlite:///{self.root / 'mlflow.db'}"

    def studies_uri(self, sweep: Sweep) -> str:
        """The search's `storage`, else RESURGE_STUDIES, else the SQLite file `studies.db`."""
        chosen = sweep.search.settings.storage if sweep.search else None
        chosen = chosen or os.environ.get("RESURGE_STUDIES")
        return chosen or f"sqlite:///{self.root / 'studies.db'}"

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
