"""The store: records and objects by digest, on a local folder, s3:// or gs://.

Layout below the root:

    records/<16 hex>.json           a stage's record; its presence is the commit
    objects/<16 hex>-<8 hex>/…      the files that a record names
    checkpoints/<16 hex>/<phase>/<step>/…
                                    a trajectory's or an unlearning's training state, removed when
                                    it is complete
    failures/<16 hex>.json          the last failure of a stage that has no record
    sweeps/<name>.json              a sweep as it was last run

A stage's objects are written first, to a folder that no other attempt uses; its record comes last
and in one move. Whatever is killed before that leaves nothing that anyone reads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from orchestrator.errors import StoreError
from orchestrator.stage import Stage

SCHEMA = 1


@dataclass(frozen=True)
class Blob:
    """A file of a record: its path below the store's root, its size and its SHA-256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What a stage left behind. `metrics` are its numbers, `objects` its files by name.

    `inputs` are the digests of what it read beside its parent: materials, its data set.
    """

    digest: str
    kind: str
    plugin: str
    version: int
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int | None
    parent: str | None
    metrics: Mapping[str, float]
    objects: Mapping[str, Blob]
    started: str
    seconds: float
    provenance: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    schema: int = field(default=SCHEMA)

    @property
    def key(self) -> str:
        """The first 16 hex digits of the digest."""
        return self.digest[:16]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`."""
        objects = {name: Blob(**blob) for name, blob in values["objects"].items()}
        return cls(**{**values, "objects": objects})


class Store:
    """Content-addressed results. All methods may be called from several processes at a time.

    Args:
        location: a folder, or a URI that `pyarrow.fs` understands (s3://bucket/prefix).
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        if "://" in self.location:
            self.fs, root = pafs.FileSystem.from_uri(self.location)
        else:
            self.fs, root = pafs.LocalFileSystem(), str(Path(location).absolute())
        self.root = root.rstrip("/")
        self._local = isinstance(self.fs, pafs.LocalFileSystem)

    # Records

    def keys(self) -> set[str]:
        """The 16-digit keys of every stage with a record: one listing."""
        return {name.removesuffix(".json") for name in self._list("records")}

    def get(self, stage: Stage) -> Record | None:
        """The stage's record, or None.

        Raises:
            StoreError: the record was made with other settings, because a plug-in's default has
                moved without its version; or another stage has the same 16 digits.
        """
        record = self.record(stage.key)
        if record is not None:
            _compare(stage, record)
        return record

    def record(self, key: str) -> Record | None:
        """The record with that 16-digit key, or None."""
        text = self._read(f"records/{key}.json")
        return None if text is None else Record.from_json(json.loads(text))

    def commit(
        self,
        stage: Stage,
        files: Mapping[str, Path],
        metrics: Mapping[str, float],
        started: str,
        seconds: float,
        provenance: Mapping[str, Any],
    ) -> Record:
        """Move `files` into the store and write the record, last. The first commit wins."""
        if (earlier := self.get(stage)) is not None:
            return earlier
        folder = f"objects/{stage.key}-{uuid.uuid4().hex[:8]}"
        record = Record(
            digest=stage.digest,
            kind=stage.kind,
            plugin=stage.plugin,
            version=stage.version,
            identity=stage.identity,
            settings=stage.settings,
            seed=stage.seed,
            parent=stage.parent.digest if stage.parent else None,
            metrics=dict(metrics),
            objects={name: self._put(path, f"{folder}/{name}") for name, path in files.items()},
            started=started,
            seconds=seconds,
            provenance=dict(provenance),
            inputs={name: made.digest for name, made in stage.inputs.items()},
        )
        self._write(f"records/{stage.key}.json", json.dumps(record.to_json(), indent=1))
        self._delete(f"failures/{stage.key}.json")
        return record

    def copy(self, stage: Stage, to: Store) -> bool:
        """Commit the stage's record and files to another store; False if there is no record."""
        record = self.get(stage)
        if record is None:
            return False
        with to.scratch() as folder:
            files = {}
            for name in record.objects:
                with self.object(record, name) as path:
                    files[name] = Path(shutil.copy(path, folder / name))
            to.commit(
                stage, files, record.metrics, record.started, record.seconds, record.provenance
            )
        return True

    @contextmanager
    def object(self, record: Record, name: str) -> Iterator[Path]:
        """A local path of one of the record's files, for reading.

        Raises:
            StoreError: the record has no such file, or the file is gone or cut short.
        """
        blob = record.objects.get(name)
        if blob is None:
            raise StoreError(f"{record.kind} {record.key} kept no {name!r}")
        path = f"{self.root}/{blob.path}"
        info = self.fs.get_file_info(path)
        if info.type != pafs.FileType.File or info.size != blob.size_bytes:
            raise StoreError(
                f"{path} is missing or cut short; delete records/{record.key}.json and run again"
            )
        with self._as_local(path) as local:
            yield local

    # Checkpoints

    def checkpoints(self, digest: str, phase: str = "train") -> list[int]:
        """Step counts at which a trajectory's (or a stage's) training state is stored, in order."""
        folder = f"checkpoints/{digest[:16]}/{phase}"
        return sorted(
            int(step) for step in self._list(folder) if self._exists(f"{folder}/{step}/state.json")
        )

    def put_checkpoint(
        self, digest: str, step: int, tensors: Path, state: Any, phase: str = "train"
    ) -> None:
        """Store the training state at `step`, then forget the phase's earlier ones."""
        folder = f"checkpoints/{digest[:16]}/{phase}"
        earlier = self.checkpoints(digest, phase)
        self._put(tensors, f"{folder}/{step}/tensors.safetensors")
        self._write(f"{folder}/{step}/state.json", json.dumps(state))
        for old in earlier:
            if old < step:
                self._delete_folder(f"{folder}/{old}")

    @contextmanager
    def checkpoint(
        self, digest: str, step: int, phase: str = "train"
    ) -> Iterator[tuple[Path, Any]]:
        """The stored training state at `step`: a local safetensors path, and JSON values."""
        folder = f"checkpoints/{digest[:16]}/{phase}/{step}"
        state = self._read(f"{folder}/state.json")
        if state is None:
            raise StoreError(f"{folder} is not a complete checkpoint")
        with self._as_local(f"{self.root}/{folder}/tensors.safetensors") as local:
            yield local, json.loads(state)

    def drop_checkpoints(self, digest: str) -> None:
        """Forget all training states of a trajectory or a stage."""
        self._delete_folder(f"checkpoints/{digest[:16]}")

    # Failures and sweeps

    def put_failure(self, stage: Stage, message: str, log_path: str | None) -> None:
        """Remember why a stage has no record."""
        values = {"digest": stage.digest, "message": message, "log_path": log_path}
        self._write(f"failures/{stage.key}.json", json.dumps(values, indent=1))

    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of every stage that has no record, by key."""
        found = {}
        for name in self._list("failures"):
            text = self._read(f"failures/{name}")
            if text is not None:
                found[name.removesuffix(".json")] = json.loads(text)
        return found

    def put_sweep(self, name: str, values: Mapping[str, Any]) -> None:
        """Remember a sweep as it was last run."""
        self._write(f"sweeps/{name}.json", json.dumps(values, indent=1))

    def sweep(self, name: str) -> dict[str, Any] | None:
        """The sweep of that name as it was last run, or None."""
        text = self._read(f"sweeps/{name}.json")
        return None if text is None else json.loads(text)

    def sweeps(self) -> list[str]:
        """The names of the sweeps that were run on this store."""
        return sorted(name.removesuffix(".json") for name in self._list("sweeps"))

    # Files

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a stage's files; beside the store where a move is then a rename."""
        parent = None
        if self._local:
            parent = f"{self.root}/scratch"
            os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield Path(folder)

    def _list(self, folder: str) -> list[str]:
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        return [
            info.base_name
            for info in self.fs.get_file_info(selector)
            if not info.base_name.startswith(".")
        ]

    def _exists(self, path: str) -> bool:
        return bool(self.fs.get_file_info(f"{self.root}/{path}").type == pafs.FileType.File)

    def _read(self, path: str) -> str | None:
        try:
            with self.fs.open_input_stream(f"{self.root}/{path}") as stream:
                return str(stream.read(), "utf-8")
        except FileNotFoundError:
            return None

    def _write(self, path: str, text: str) -> None:
        """Write in one move: an object store's put is atomic, a folder needs a rename."""
        target = f"{self.root}/{path}"
        self._make_folder(target)
        aside = f"{os.path.dirname(target)}/.{uuid.uuid4().hex}" if self._local else target
        with self.fs.open_output_stream(aside) as stream:
            stream.write(text.encode())
        if aside != target:
            self.fs.move(aside, target)

    def _put(self, source: Path, path: str) -> Blob:
        target = f"{self.root}/{path}"
        blob = Blob(path, source.stat().st_size, _sha256(source))
        self._make_folder(target)
        if self._local:
            shutil.move(source, target)
        else:
            pafs.copy_files(str(source), target, pafs.LocalFileSystem(), self.fs)
        return blob

    def _make_folder(self, target: str) -> None:
        if self._local:
            self.fs.create_dir(os.path.dirname(target), recursive=True)

    @contextmanager
    def _as_local(self, path: str) -> Iterator[Path]:
        if self._local:
            yield Path(path)
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / os.path.basename(path)
            pafs.copy_files(path, str(local), self.fs, pafs.LocalFileSystem())
            yield local

    def _delete(self, path: str) -> None:
        if self._exists(path):
            self.fs.delete_file(f"{self.root}/{path}")

    def _delete_folder(self, path: str) -> None:
        if self.fs.get_file_info(f"{self.root}/{path}").type == pafs.FileType.Directory:
            self.fs.delete_dir(f"{self.root}/{path}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compare(stage: Stage, record: Record) -> None:
    if record.digest != stage.digest:
        raise StoreError(f"two stages share the key {stage.key}: {stage.digest}, {record.digest}")
    moved = list(_moved(stage.settings, record.settings, ""))
    if moved:
        raise StoreError(
            f"a default of {stage.kind} plug-in {stage.plugin!r} has moved without its version: "
            f"{'; '.join(moved)}. Raise the plug-in's `version` from {stage.version} to "
            f"{stage.version + 1}, or put the default back"
        )


def _moved(now: Any, then: Any, path: str) -> Iterator[str]:
    """Settings that both sides have and that differ; a new setting is not a moved one."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in now.keys() & then.keys():
            yield from _moved(now[name], then[name], f"{path}.{name}" if path else name)
    elif now != then:
        yield f"{path} was {then!r} and is {now!r}"
