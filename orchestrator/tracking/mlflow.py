"""Runs -> MLflow, in one writer that may fall behind but is never in the way.

MLflow is a view of the store and the studies. Each run carries the tags `resurge.sweep`,
`resurge.key` and `resurge.synced`, a digest of what was last written to it: writing again writes
nothing, and what was cut off is completed. A run whose trial is no longer in the sweep is tagged
`resurge.left_sweep` and deleted, which MLflow can undo, and so do we when the trial is back.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.digest import sha256
from orchestrator.core.places import file_of
from orchestrator.core.redact import redact
from orchestrator.results.pictures import grid, read_images
from orchestrator.store.store import Store
from orchestrator.tracking.connection import (
    client_of,
    errors,
    first_line,
    is_of_one_run,
    is_server,
    pages,
    restore_command,
    the_library,
)
from orchestrator.tracking.database import TrackingError, check, relocate
from orchestrator.tracking.inputs import DataInput
from orchestrator.tracking.names import experiment_name, legal_name, legal_title, legal_value
from orchestrator.tracking.run import CONFIRMED, WORST_CASE, MetricPoint, Run, View

IMAGE_KEY = "erased"
SYNCED = "resurge.synced"
LEFT = "resurge.left_sweep"
STORE = "resurge.store"
"""On a server that several stores share: whose run it is."""
PARENT = "mlflow.parentRunId"
MARKS = {CONFIRMED, WORST_CASE}
"""Tags that a run may lose again."""


@dataclass
class Counts:
    """What a sync did, in runs. `refused` has by name why MLflow did not take all of a run."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    left: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> int:
        """How many runs MLflow has of the sweep."""
        return self.created + self.updated + self.unchanged

    def __str__(self) -> str:
        left = f", {self.left} no longer in the sweep" if self.left else ""
        return (
            f"MLflow: {self.created} runs created, {self.updated} updated, "
            f"{self.unchanged} already up to date{left}"
        )

    @property
    def problem(self) -> str | None:
        """What was refused, in a sentence."""
        if not self.refused:
            return None
        name, why = next(iter(self.refused.items()))
        others = f" (and of {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
        return (
            f"MLflow did not take all of the run {name!r}{others}: {why}; the other runs are up "
            f"to date"
        )


@dataclass
class _Known:
    """A run that MLflow has. `points` and `images` hold what this process knows to be there."""

    run_id: str
    name: str
    digest: str | None = None
    status: str = "RUNNING"
    parent_id: str | None = None
    is_left: bool = False
    is_deleted: bool = False
    store: str | None = None
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
        TrackingError: MLflow does not answer or refuses.
    """
    try:
        counts = Tracker(uri, artifact_root).sync(view)
    except errors() as error:
        what = f"MLflow at {redact(uri)} cannot be written: {first_line(error)}"
        raise TrackingError(what) from error
    if counts.problem is not None:
        raise TrackingError(counts.problem)
    return counts


class Tracker:
    """Writes sweeps to one MLflow. For one thread; it remembers what it has written."""

    def __init__(self, uri: str, artifact_root: Path | None = None) -> None:
        self.uri = uri
        self.artifact_root = artifact_root
        self._experiments: dict[str, str] = {}
        self._known: dict[str, dict[str, _Known]] = {}
        self._whole: set[str] = set()

    def sync(self, view: View, with_files: bool = True) -> Counts:
        """Write what MLflow lacks. Without files, leave out what takes long to make, and once all
        was written look at nothing but what has changed since, which is all that is counted then.

        What MLflow refuses of one run stops no other.
        """
        counts = Counts()
        known = self._runs_of(view.name)
        shown = set()
        only_new = not with_files and view.name in self._whole
        for run in view.runs(only_new):
            shown.add(run.key)
            due = run if with_files else replace(run, files={})
            problems = _Problems()
            with problems:
                self._bring(view, run, due, counts, problems)
            if problems.found:
                counts.refused[run.name] = problems.found[0]
        if not only_new:
            self._put_aside(view, known.keys() - shown, counts)
        self._whole.add(view.name)
        if counts.refused:
            self._known.pop(view.name)  # it may be that somebody deleted one: look again
            self._whole.discard(view.name)
        return counts

    def _bring(self, view: View, run: Run, due: Run, counts: Counts, problems: _Problems) -> None:
        """One run up to date; what MLflow refuses of it goes to `problems` or is raised."""
        known = self._known[view.name]
        if run.parent is not None and run.parent not in known:
            raise TrackingError("the run above it could not be written")
        parent_id = None if run.parent is None else known[run.parent].run_id
        earlier = known.get(run.key)
        if earlier is not None and earlier.is_left:
            self._take_back(earlier)
        if earlier is None:
            known[run.key] = self._create(view, run, parent_id)
        elif earlier.has(run, due) and earlier.parent_id == parent_id:
            counts.unchanged += 1
            return
        self._write(known[run.key], due, parent_id, view.store, problems)
        counts.created += earlier is None
        counts.updated += earlier is not None

    def forget(self) -> None:
        """After an error: read again what MLflow has."""
        self._experiments.clear()
        self._known.clear()
        self._whole.clear()
        self.__dict__.pop("_client", None)

    @cached_property
    def _client(self) -> Any:
        if (path := file_of(self.uri)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            check(self.uri)
            if self.artifact_root is not None:
                relocate(self.uri, self.artifact_root)
        return client_of(self.uri)

    @property
    def _is_server(self) -> bool:
        return is_server(self.uri)

    def _experiment(self, sweep: str) -> str:
        if sweep not in self._experiments:
            name = experiment_name(sweep)
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage != "active":
                raise TrackingError(
                    f"MLflow's experiment {name!r} is deleted; restore it "
                    f"({restore_command(self.uri, found.experiment_id)}) or rename the sweep"
                )
            if found is not None:
                self._experiments[sweep] = found.experiment_id
                return self._experiments[sweep]
            location = None
            if self.artifact_root is not None and not self._is_server:
                location = (self.artifact_root.absolute() / name).as_uri()
            # Without its kind the UI opens it on pages for language models, not on its runs.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            self._experiments[sweep] = str(self._client.create_experiment(name, location, tags))
        return self._experiments[sweep]

    def _runs_of(self, sweep: str) -> dict[str, _Known]:
        """The sweep's runs by key, asked for once; the oldest of a key counts, and one that the
        user deleted does not.
        """
        if sweep not in self._known:
            found: dict[str, _Known] = {}
            token, is_last = None, False
            while not is_last:
                page = self._client.search_runs(
                    [self._experiment(sweep)],
                    run_view_type=the_library().entities.ViewType.ALL,
                    max_results=1_000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                for run in page:
                    tags, is_deleted = run.data.tags, run.info.lifecycle_stage != "active"
                    if tags.get("resurge.sweep") != sweep or "resurge.key" not in tags:
                        continue
                    if is_deleted and LEFT not in tags:
                        continue
                    known = _Known(
                        run.info.run_id,
                        run.info.run_name,
                        digest=tags.get(SYNCED),
                        status=run.info.status,
                        parent_id=tags.get(PARENT),
                        is_left=LEFT in tags,
                        is_deleted=is_deleted,
                        store=tags.get(STORE),
                    )
                    known.params.update(run.data.params)
                    known.marks.update(MARKS & tags.keys())
                    found.setdefault(tags["resurge.key"], known)
                token, is_last = page.token, not page.token
            self._known[sweep] = found
        return self._known[sweep]

    def _create(self, view: View, run: Run, parent_id: str | None) -> _Known:
        tags = {"resurge.sweep": view.name, "resurge.key": run.key, "resurge.kind": run.kind}
        if parent_id is not None:
            tags[PARENT] = parent_id
        name = legal_title(redact(run.name), run.key)
        created = self._client.create_run(
            self._experiment(view.name), start_time=run.start_ms, tags=tags, run_name=name
        )
        return _Known(created.info.run_id, name, parent_id=parent_id, images=set())

    def _put_aside(self, view: View, keys: Iterable[str], counts: Counts) -> None:
        """A run that is not shown any more stays while it is the sweep's, but no longer as the
        worst case; one that has left the sweep is tagged and deleted.
        """
        own = self._store_tag(view.store)
        for key in keys:
            one = self._known[view.name][key]
            # Who may write a run may not be allowed to delete it: it then keeps its tag.
            with _Problems():
                if view.holds(key):
                    self._unmark(one)
                elif not one.is_left and one.store in (None, own):
                    self._client.set_tag(one.run_id, LEFT, "true")
                    one.is_left = True
                    counts.left += 1
                    if one.status == "RUNNING":
                        self._client.set_terminated(one.run_id, "KILLED")
                        one.status = "KILLED"
                    self._client.delete_run(one.run_id)
                    one.is_deleted = True

    def _unmark(self, one: _Known) -> None:
        if WORST_CASE in one.marks:
            for tag in (WORST_CASE, SYNCED):
                self._client.delete_tag(one.run_id, tag)
            one.marks.remove(WORST_CASE)
            one.digest = None

    def _take_back(self, one: _Known) -> None:
        if one.is_deleted:
            self._client.restore_run(one.run_id)
            one.is_deleted = False
        self._client.delete_tag(one.run_id, LEFT)
        one.is_left = False

    def _store_tag(self, store: Store) -> str | None:
        return sha256(store.location)[:16] if self._is_server else None

    def _write(
        self, known: _Known, run: Run, parent_id: str | None, store: Store, problems: _Problems
    ) -> None:
        """Files first, then all numbers in one batch with the mark that nothing is missing. What
        MLflow refuses keeps nothing else back, and not the run's end.
        """
        with problems:
            self._write_images(known, run, store)
        with problems:
            self._write_files(known, run)
        with problems:
            self._write_inputs(known, run)
        for mark in known.marks - run.tags.keys():
            with problems:
                self._client.delete_tag(known.run_id, mark)
        name = legal_title(redact(run.name), run.key)
        with problems:
            if name != known.name:
                self._client.update_run(known.run_id, name=name)
                known.name = name
        own = {PARENT: parent_id, STORE: self._store_tag(store)}
        tags = {tag: value for tag, value in own.items() if value is not None}
        with problems:
            self._write_batch(known, run, tags, is_whole=not problems.found)
            known.parent_id = parent_id
        known.marks = MARKS & run.tags.keys()
        with problems:
            if run.status != known.status and run.status == "RUNNING":
                self._client.update_run(known.run_id, status=run.status)
            elif run.status != known.status:
                self._client.set_terminated(known.run_id, run.status, end_time=run.end_ms)
            known.status = run.status
        known.digest = None if problems.found else run.digest

    def _write_files(self, known: _Known, run: Run) -> None:
        for name, text in run.texts.items():
            if known.written.get(name) != text:
                safe = redact(text).encode("utf-8", "replace").decode()
                self._client.log_text(known.run_id, safe, name)
                known.written[name] = text
        for name, file in run.files.items():
            if known.written.get(name) != file.digest:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, name)
                    path.write_bytes(file.make())
                    self._client.log_artifact(known.run_id, str(path))
                known.written[name] = file.digest

    def _write_inputs(self, known: _Known, run: Run) -> None:
        if new := [data for data in run.data if data not in known.data]:
            entities = the_library().entities
            used = [entities.InputTag("mlflow.data.context", "training")]
            # MLflow knows a data set by name and digest: logging it again adds nothing.
            sent = [replace(data, name=legal_title(data.name, data.digest)) for data in new]
            inputs = [
                entities.DatasetInput(entities.Dataset(**asdict(data)), used) for data in sent
            ]
            self._client.log_inputs(known.run_id, datasets=inputs)
            known.data.update(new)

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

    def _write_batch(self, known: _Known, run: Run, own: dict[str, str], is_whole: bool) -> None:
        entities = the_library().entities
        new = [point for point in run.points if point not in known.points]
        # MLflow has no infinity: it would show the largest number that there is.
        endless = dict.fromkeys(p.name for p in run.points if math.isinf(p.value))
        metrics = [
            entities.Metric(legal_name(p.name), p.value, p.time_ms, p.step)
            for p in new
            if not math.isinf(p.value)
        ]
        # What MLflow has of a parameter it never changes.
        params = {legal_name(name): value for name, value in run.params.items()}
        params = {name: value for name, value in params.items() if name not in known.params}
        tags = {legal_name(name): value for name, value in run.tags.items()} | own
        tags |= {"resurge.infinite": ", ".join(endless)} if endless else {}
        if is_whole:
            tags[SYNCED] = run.digest
        items = [
            *metrics,
            *(entities.Param(k, legal_value(redact(v))) for k, v in params.items()),
            *(entities.RunTag(k, legal_value(redact(v))) for k, v in tags.items()),
        ]
        for page in pages(items):
            kinds = entities.Metric, entities.Param, entities.RunTag
            of_kind = [[item for item in page if isinstance(item, kind)] for kind in kinds]
            self._client.log_batch(known.run_id, *of_kind)
        known.points.update(new)
        known.params.update(params)


class _Problems:
    """What MLflow refused of one run. As a context it takes such an error and lets others pass."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        if isinstance(error, Exception) and is_of_one_run(error):
            self.found.append(first_line(error))
            return True
        return False
