"""MLflow's client: where it is loaded, what goes wrong with it, and how much it takes at once."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.core.places import file_of
from orchestrator.core.redact import redact
from orchestrator.tracking.database import TrackingError, check

MAX_PAIRS, MAX_ENTITIES, MAX_BYTES = 100, 1_000, 900_000
"""What a batch may hold: parameters, and tags; all together; as JSON, a little less than 1e6."""


def is_of_one_run(error: Exception) -> bool:
    """Whether the next run may fare better: MLflow answered, and what it was sent was wrong."""
    if isinstance(error, TrackingError):
        return True
    if not isinstance(error, the_library().exceptions.MlflowException):
        return False
    status = error.get_http_status_code()
    is_about_it = 400 <= status < 500 and status not in (401, 408, 429)
    # Answers that are no JSON of MLflow's: a proxy's "too large", for example.
    return is_about_it or "failed with error code 4" in str(error)


def tags_of(run_id: str, uri: str) -> dict[str, str] | None:
    """A run's tags, or None if MLflow knows no such run.

    Raises:
        TrackingError: MLflow cannot be read.
    """
    path = file_of(uri)
    if path is not None and not path.exists():
        return None
    check(uri)
    try:
        return dict(client_of(uri).get_run(run_id).data.tags)
    except errors() as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return None
        what = f"MLflow at {redact(uri)} cannot be read: {first_line(error)}"
        raise TrackingError(what) from error


def the_library() -> Any:
    """MLflow, imported when it is first needed: seconds that a background thread can spend."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no line for every table it creates
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # errors are raised too
    return mlflow


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def client_of(uri: str) -> Any:
    mlflow = the_library()
    from mlflow.tracking._tracking_service import utils as by_run

    by_run._artifact_repos_cache.clear()  # a copy's runs have the ids of the original's
    if not is_server(uri):
        from mlflow.store.db import utils

        # Each try waits twice as long as the one before: its fifteen would take an hour.
        utils.MAX_RETRY_COUNT = min(utils.MAX_RETRY_COUNT, 4)
    return mlflow.MlflowClient(tracking_uri=uri)


def errors() -> tuple[type[Exception], ...]:
    """What comes of a server that is away, and of a database that is damaged, in use, full, or
    whose driver is not installed.
    """
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    return (the_library().MlflowException, SQLAlchemyError, CommandError, ImportError, OSError)


def first_line(error: Exception) -> str:
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])


def pages(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Batches as large as MLflow takes them."""
    page: list[Any] = []
    counts: Counter[type] = Counter()
    size = 0
    for item in items:
        one = len(json.dumps(dict(item)))
        most = MAX_ENTITIES if isinstance(item, the_library().entities.Metric) else MAX_PAIRS
        is_full = counts[type(item)] >= most or len(page) >= MAX_ENTITIES
        if page and (is_full or size + one > MAX_BYTES):
            yield page
            page, counts, size = [], Counter(), 0
        page.append(item)
        counts[type(item)] += 1
        size += one
    if page:
        yield page


def restore_command(uri: str, experiment_id: str) -> str:
    """What a shell can run; MLflow is beside this Python if it is on no path."""
    mlflow = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).parent / "mlflow")
    place = f"MLFLOW_TRACKING_URI={shlex.quote(uri)}"
    return f"{place} {shlex.quote(mlflow)} experiments restore -x {experiment_id}"
