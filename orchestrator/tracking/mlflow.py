"""Runs -> MLflow, in one writer that may fall behind but is never in the way.

MLflow is a view of the store and the studies. Each run carries the tags `resurge.sweep`,
`resurge.key` and `resurge.synced`, a digest of what was last written to it: writing again writes
nothing, and what was cut off is completed.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import file_of
from orchestrator.core.redact import redact
from orchestrator.results.pictures import grid, read_images
from orchestrator.store.store import Store
from orchestrator.tracking.inputs import DataInput
from orchestrator.tracking.run import CONFIRMED, WORST_CASE, MetricPoint, Run, View

IMAGE_KEY = "erased"
SYNCED = "resurge.synced"
MARKS = {CONFIRMED, WORST_CASE}
"""Tags that a run may lose again."""
MAX_POINTS = 1_000
MAX_PAIRS = 100
MAX_VALUE_CHARACTERS = 6_000
MAX_PAUSE_S = 60.0
ATTEMPTS_AT_CLOSE = 3


@dataclass
class Counts:
    """What a sync did, in runs."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0

    def __str__(self) -> str:
        return (
            f"MLflow: {self.created} runs created, {self.updated} updated, "
            f"{self.unchanged} already up to date"
        )


@dataclass
class _Known:
    """A run that MLflow has. `points` and `images` hold what this process knows to be there."""

    run_id: str
    digest: str | None = None
    status: str = "RUNNING"
    points: set[MetricPoint] = field(default_factory=set)
    images: set[int] | None = None
    written: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    data: set[DataInput] = field(default_factory=set)

    def has(self, *versions: Run) -> bool:
        """Whether MLflow has one of these."""
        return any((self.digest, self.status) == (run.digest, run.status) for run in versions)


def sync(view: View, uri: str, artifact_root: Path | None = None) -> Counts:
    """Bring MLflow up to date with what there is to see. Doing it again does nothing.

    Args:
        uri: a database (sqlite:///…) or a server (http://…).
        artifact_root: the folder for artifacts of a database; a server has its own.

    Raises:
        ResurgeError: MLflow does not answer or refuses.
    """
    try:
        return Tracker(uri, artifact_root).sync(view)
    except (_mlflow().MlflowException, OSError) as error:
        what = f"MLflow at {redact(uri)} cannot be written: {_first_line(error)}"
        raise ResurgeError(what) from error


class Tracker:
    """Writes sweeps to one MLflow. For one thread; it remembers what it has written."""

    def __init__(self, uri: str, artifact_root: Path | None = None) -> None:
        self.uri = uri
        self.artifact_root = artifact_root
        self._experiments: dict[str, str] = {}
        self._known: dict[str, dict[str, _Known]] = {}

    def sync(self, view: View, with_files: bool = True) -> Counts:
        """Write what MLflow lacks; without files, leave out what takes long to make."""
        counts = Counts()
        known = self._runs_of(view.name)
        shown = set()
        for run in view.runs():
            shown.add(run.key)
            due = run if with_files else replace(run, files={})
            earlier = known.get(run.key)
            if earlier and earlier.has(run, due):
                counts.unchanged += 1
                continue
            if earlier is None:
                known[run.key] = self._create(view.name, run, known)
            self._write(known[run.key], due, view.store)
            counts.created += earlier is None
            counts.updated += earlier is not None
        # A run that is not shown any more stays, but no longer as the worst case.
        for one in (known[key] for key in known.keys() - shown):
            if WORST_CASE in one.marks:
                for tag in (WORST_CASE, SYNCED):
                    self._client.delete_tag(one.run_id, tag)
                one.marks.remove(WORST_CASE)
                one.digest = None
        return counts

    def forget(self) -> None:
        """After an error: read again what MLflow has."""
        self._experiments.clear()
        self._known.clear()
        self.__dict__.pop("_client", None)

    @cached_property
    def _client(self) -> Any:
        if (file := file_of(self.uri)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return _mlflow().MlflowClient(tracking_uri=self.uri)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage != "active":
                raise ResurgeError(
                    f"MLflow's experiment {name!r} is deleted; restore it "
                    f"(mlflow experiments restore -x {found.experiment_id}) or rename the sweep"
                )
            if found is not None:
                self._experiments[name] = found.experiment_id
                return self._experiments[name]
            location = None
            if self.artifact_root is not None and not self.uri.startswith(("http://", "https://")):
                location = (self.artifact_root.absolute() / name).as_uri()
            # Without its kind the UI opens it on pages for language models, not on its runs.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            self._experiments[name] = str(self._client.create_experiment(name, location, tags))
        return self._experiments[name]

    def _runs_of(self, sweep: str) -> dict[str, _Known]:
        """The sweep's runs by key, asked for once; the oldest of a key counts."""
        if sweep not in self._known:
            found: dict[str, _Known] = {}
            token, is_last = None, False
            while not is_last:
                page = self._client.search_runs(
                    [self._experiment(sweep)],
                    max_results=1_000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                for run in page:
                    tags = run.data.tags
                    if tags.get("resurge.sweep") == sweep and "resurge.key" in tags:
                        known = _Known(run.info.run_id, tags.get(SYNCED), run.info.status)
                        known.params.update(run.data.params)
                        known.marks.update(MARKS & tags.keys())
                        found.setdefault(tags["resurge.key"], known)
                token, is_last = page.token, not page.token
            self._known[sweep] = found
        return self._known[sweep]

    def _create(self, sweep: str, run: Run, known: dict[str, _Known]) -> _Known:
        tags = {"resurge.sweep": sweep, "resurge.key": run.key, "resurge.kind": run.kind}
        if run.parent is not None:
            tags["mlflow.parentRunId"] = known[run.parent].run_id
        created = self._client.create_run(
            self._experiment(sweep), start_time=run.start_ms, tags=tags, run_name=run.name
        )
        return _Known(created.info.run_id, images=set())

    def _write(self, known: _Known, run: Run, store: Store) -> None:
        """Files first, then all numbers in one batch with the mark that nothing is missing."""
        self._write_images(known, run, store)
        for name, text in run.texts.items():
            if known.written.get(name) != text:
                self._client.log_text(known.run_id, redact(text), name)
                known.written[name] = text
        for name, file in run.files.items():
            if known.written.get(name) != file.digest:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, name)
                    path.write_bytes(file.make())
                    self._client.log_artifact(known.run_id, str(path))
                known.written[name] = file.digest
        if new := [data for data in run.data if data not in known.data]:
            entities = _mlflow().entities
            used = [entities.InputTag("mlflow.data.context", "training")]
            # MLflow knows a data set by name and digest: logging it again adds nothing.
            inputs = [entities.DatasetInput(entities.Dataset(**asdict(data)), used) for data in new]
            self._client.log_inputs(known.run_id, datasets=inputs)
            known.data.update(new)
        for mark in known.marks - run.tags.keys():
            self._client.delete_tag(known.run_id, mark)
        self._write_batch(known, run)
        known.marks = MARKS & run.tags.keys()
        if run.status != known.status and run.status == "RUNNING":
            self._client.update_run(known.run_id, status=run.status)
        elif run.status != known.status:
            self._client.set_terminated(known.run_id, run.status, end_time=run.end_ms)
        known.status = run.status
        known.digest = run.digest

    def _write_images(self, known: _Known, run: Run, store: Store) -> None:
        if run.images and known.images is None:
            # MLflow writes the picture first, then its preview, whose name has the step in it.
            found = self._client.list_artifacts(known.run_id, "images")
            names = [Path(item.path).stem for item in found]
            known.images = {int(n.split("+")[2]) for n in names if n.endswith("+compressed")}
        for step, record in run.images.items():
            if known.images is not None and step not in known.images:
                image = grid(read_images(store, record))
                self._client.log_image(known.run_id, image, key=IMAGE_KEY, step=step)
                known.images.add(step)

    def _write_batch(self, known: _Known, run: Run) -> None:
        entities = _mlflow().entities
        new = [point for point in run.points if point not in known.points]
        metrics = [entities.Metric(p.name, p.value, p.time_ms, p.step) for p in new]
        # What MLflow has of a parameter it never changes.
        params = [pair for pair in _cut(run.params) if pair[0] not in known.params]
        tags = [*_cut(run.tags), (SYNCED, run.digest)]
        pages = (_pages(metrics, MAX_POINTS), _pages(params, MAX_PAIRS), _pages(tags, MAX_PAIRS))
        for some_metrics, some_params, some_tags in zip_longest(*pages, fillvalue=()):
            self._client.log_batch(
                known.run_id,
                metrics=[*some_metrics],
                params=[entities.Param(k, v) for k, v in some_params],
                tags=[entities.RunTag(k, v) for k, v in some_tags],
            )
        known.points.update(new)
        known.params.update(run.params)


class BackgroundTracker:
    """Keeps MLflow up to date from a thread of its own while a sweep runs.

    What takes long to make is written once, at the end. Nothing that MLflow does reaches the
    caller: an error is kept in `last_error` and tried again, less and less often. The store has
    everything, so `sync` can always mend it later.
    """

    def __init__(
        self, view: View, uri: str, artifact_root: Path | None = None, every_s: float = 3.0
    ) -> None:
        self.last_error: str | None = None
        self._view: Final = view
        self._every_s: Final = every_s
        self._tracker: Final = Tracker(uri, artifact_root)
        self._due = threading.Event()
        self._closing = threading.Event()
        self._is_current = False
        self._thread = threading.Thread(target=self._work, name="resurge-tracking", daemon=True)
        self._thread.start()
        self.notify()

    def notify(self) -> None:
        """Something was committed or failed. Returns at once."""
        self._due.set()

    def close(self, timeout_s: float) -> bool:
        """Write what is left once nothing commits any more; whether MLflow is up to date."""
        self._closing.set()
        self._due.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self.last_error is None:
            self.last_error = f"MLflow took more than {timeout_s:g} s"
        return self._is_current and not self._thread.is_alive()

    def _work(self) -> None:
        pause_s = self._every_s
        while not self._closing.is_set():
            self._due.wait()
            if self._closing.is_set():
                break
            self._due.clear()
            if self._attempt(with_files=False):
                pause_s = self._every_s
            else:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                self._due.set()
            self._closing.wait(pause_s)
        for _ in range(ATTEMPTS_AT_CLOSE):
            if self._attempt(with_files=True):
                self._is_current = True
                return

    def _attempt(self, with_files: bool) -> bool:
        try:
            self._tracker.sync(self._view, with_files)
        except Exception as error:
            # A database that is locked, a server that is away, a store that is slow: none of them
            # may stop the sweep. The error is shown at the end and the sync can be repeated.
            self.last_error = _first_line(error)
            self._tracker.forget()
            return False
        self.last_error = None
        return True


def tags_of(run_id: str, uri: str) -> dict[str, str] | None:
    """A run's tags, or None if MLflow knows no such run."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(_mlflow().MlflowClient(tracking_uri=uri).get_run(run_id).data.tags)
    except MlflowException:
        return None


def _mlflow() -> Any:
    """MLflow, imported when it is first needed: seconds that a background thread can spend."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no line for every table it creates
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # errors are raised too
    return mlflow


def _first_line(error: Exception) -> str:
    return redact((str(error).strip() or type(error).__name__).splitlines()[0])


def _cut(values: Any) -> list[tuple[str, str]]:
    """Values that MLflow would cut without a word, cut so that it shows."""
    return [(name, _cut_value(redact(value))) for name, value in values.items()]


def _cut_value(value: str) -> str:
    if len(value) <= MAX_VALUE_CHARACTERS:
        return value
    mark = f"… (cut, {len(value)} characters; see sweep.yaml)"
    return value[: MAX_VALUE_CHARACTERS - len(mark)] + mark


def _pages(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))
