"""The store: records and objects by digest, on a local folder, s3:// or gs://.

Layout below the root:

    records/<16 hex>.json           a stage's record; its presence is the commit
    objects/<16 hex>-<8 hex>/…      the files that a record names
    checkpoints/<16 hex>/<phase>/<step>/…
                                    a trajectory's or an unlearning's training state, removed when
                                    it is complete
    failures/<16 hex>.json          the last failure of a stage that has no record
    sweeps/<name>.json              a sweep as it was last run, with its plan
    quarantine/<name>-<8 hex>/…     a damaged record with its objects, or another document, and why

Every JSON document but those of quarantine carries its own checksum (`sealed.py`).

A stage's objects are written first, to a folder that no other attempt uses; its record comes last
and in one move. Whatever is killed before that leaves nothing that anyone reads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from orchestrator.core.artifacts import Failure, Provenance, RowFile
from orchestrator.core.errors import CorruptObject, DamagedDocument, StoreError, UnreadableFile
from orchestrator.core.stage import Stage
from orchestrator.store.files import Files, NotAFile, fault_of_file, sha256_of
from orchestrator.store.index import Index, stamp_of
from orchestrator.store.paths import (
    CHECKPOINT,
    CHECKPOINTS,
    FAILURES,
    OBJECTS,
    RECORDS,
    SCRATCH,
    SWEEPS,
    json_path,
    name_in,
)
from orchestrator.store.patience import Patience
from orchestrator.store.quarantine import set_aside
from orchestrator.store.record import SCHEMA
from orchestrator.store.record import Blob as Blob
from orchestrator.store.record import Record as Record
from orchestrator.store.sealed import seal, seal_of, unseal

T = TypeVar("T")
R = TypeVar("R", bound=tuple[Any, ...])
_KEY, _STEP = re.compile("[0-9a-f]{16}"), re.compile("[0-9]{1,18}")


def record_of(store: Store, stage: Stage) -> Record:
    """The record of a stage that was done before.

    Raises:
        CorruptObject: it is gone: somebody found it damaged, and has not made it again yet.
    """
    record = store.get(stage)
    if record is None:
        raise CorruptObject(f"{stage!r} is not in the store any more", stage.digest)
    return record


_VERIFIED: set[tuple[str, int, int]] = set()
"""Local files (path, bytes, mtime in ns) whose hash this process has seen to be right."""


@dataclass(frozen=True)
class Found(Generic[T]):
    """A document as it was read: its bytes (None of what is no file), its value or its fault."""

    data: bytes | None
    value: T | None
    fault: str | None = None


class Store:
    """Content-addressed results. All methods may be called from several processes at a time.

    Args:
        location: a folder, or a URI: s3://bucket/prefix, gs://bucket/prefix, file:///folder.
        patience: how long trouble that may pass is waited for.

    Attributes:
        lost: keys of the records that were found damaged here; who runs a sweep looks at it, and
            clears it.

    Raises:
        StoreUnavailable: from every method, when the store could not be reached for that long.
    """

    def __init__(self, location: str | Path, patience: Patience | None = None) -> None:
        self.files = Files(location, patience)
        self.location, self.root = self.files.location, self.files.root
        self.lost: set[str] = set()
        self._index: Index | None = None

    def packed(self) -> Store:
        """The same, reading what it has read before from an index beside the files: for whoever
        reads thousands of records and scores. A bucket has none.
        """
        if self.files.is_local and self._index is None:
            self._index = Index(Path(self.root))
        return self

    def flush(self) -> None:
        """Write what the index has not written yet."""
        if self._index is not None:
            self._index.flush()

    # Records

    def keys(self) -> set[str]:
        """The 16-digit keys of every stage with a record: one listing, which cannot see whether a
        record is damaged.
        """
        return {name for name in self._names(RECORDS) if _KEY.fullmatch(name)}

    def get(self, stage: Stage) -> Record | None:
        """The stage's record, or None.

        Raises:
            StoreError: the record was made with other settings, because a plug-in's default has
                moved without its version; or another stage has the same 16 digits.
        """
        record = self.record(stage.key)
        if record is None:
            return None
        if record.digest != stage.digest:
            raise StoreError(
                f"two stages share the key {stage.key}: {stage.digest}, {record.digest}"
            )
        if moved := list(_moved(stage.settings, record.settings, "", stage.uncounted)):
            raise StoreError(
                f"a default of {stage.kind} plug-in {stage.plugin!r} has moved without its "
                f"version: {'; '.join(moved)}. Raise the plug-in's `version` from {stage.version} "
                f"to {stage.version + 1}, or put the default back"
            )
        return record

    def record(self, key: str) -> Record | None:
        """The record with that 16-digit key, or None.

        One that is damaged is set aside and counts as none.

        Raises:
            StoreError: a later Resurge wrote it.
        """
        path = json_path(RECORDS, key)
        stamp, known = self._indexed(path)
        if known is not None:
            return Record.read(known)
        found = self._sound(path, partial(Record.from_json, key))
        if found is not None and found.fault is not None:
            self.lost.add(key)
        record = found.value if found is not None else None
        if record is not None:
            self._remember(path, stamp, record.to_json())
        return record

    def look(self, key: str) -> Found[Record] | None:
        """The file of the record with that 16-digit key, unchanged; None if there is none.

        Raises:
            LaterRecord: a later Resurge wrote it.
        """
        return self._look(json_path(RECORDS, key), partial(Record.from_json, key))

    def look_at(self, path: str) -> Found[dict[str, Any]] | None:
        """Another document than a record, unchanged; None if there is none."""
        return self._look(path, lambda values: values)

    def commit(
        self,
        stage: Stage,
        files: Mapping[str, Path],
        metrics: Mapping[str, float],
        started: str,
        seconds: float,
        provenance: Provenance,
    ) -> Record:
        """Move `files` into the store and write the record, last. The first commit wins."""
        if (earlier := self.get(stage)) is not None:
            return earlier
        folder = f"{OBJECTS}/{stage.key}-{uuid.uuid4().hex[:8]}"
        objects = {name: self._put(path, f"{folder}/{name}") for name, path in files.items()}
        record = Record.of(stage, dict(metrics), objects, started, seconds, provenance)
        self.files.write(json_path(RECORDS, stage.key), record.to_text())
        self.files.delete(json_path(FAILURES, stage.key))
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
        """A local path of one of the record's files, for reading; its content is verified.

        Raises:
            StoreError: the record has no such file.
            CorruptObject: the file is gone, cut short, or not what was written, or its reader
                raised `UnreadableFile`. Its record has
                been set aside, so that the stage of the error's `key` (16 digits) and `digest` (64)
                is not done any more. Whoever wants the file runs that stage again, and what it
                takes from its own parents may turn out to be damaged in turn.
        """
        blob = record.objects.get(name)
        if blob is None:
            raise StoreError(f"{record.kind} {record.key} kept no {name!r}")
        with ExitStack() as stack:
            path, fault = self._fetch(stack, blob)
            if fault is not None and not self.files.is_local:
                path, fault = self._fetch(stack, blob)  # it may have been damaged on its way
            if fault is not None:
                raise self._damaged(record, f"{blob.path} {fault}")
            try:
                yield path
            except UnreadableFile as error:
                raise self._damaged(record, str(error)) from error

    def rows(self, record: Record, table: RowFile[R]) -> list[R]:
        """The rows of one of the record's tables, of columns that JSON can say.

        Raises:
            StoreError, CorruptObject: as of `object`.
        """
        blob = record.objects.get(table.name)
        stamp, known = self._indexed(blob.path) if blob is not None else (None, None)
        if known is not None:
            return [table.row(*values) for values in known]
        with self.object(record, table.name) as path:
            found = table.read(path)
        if blob is not None:
            self._remember(blob.path, stamp, found)
        return found

    def _indexed(self, path: str) -> tuple[str | None, Any]:
        """A file's stamp, and what was read of it before."""
        if self._index is None or (found := stamp_of(Path(self.root, path))) is None:
            return None, None
        stamp = f"{SCHEMA}:{found}"  # another version of ours writes other values
        data = self._index.get(path, stamp)
        return stamp, None if data is None else json.loads(data)

    def _remember(self, path: str, stamp: str | None, values: Any) -> None:
        if self._index is not None and stamp is not None:
            self._index.put(path, stamp, json.dumps(values, separators=(",", ":")).encode())

    def _damaged(self, record: Record, why: str) -> CorruptObject:
        """Set the record aside; one that was changed meanwhile stays as it is now."""
        at = json_path(RECORDS, record.key)
        with suppress(NotAFile):
            data = self.files.read_bytes(at)
            if data is not None and seal_of(data) == seal_of(record.to_text()):
                set_aside(self.files, at, data, why)
        self.lost.add(record.key)
        return CorruptObject(
            f"{record.kind} {record.key} is damaged: {why}. It was set aside in quarantine/; run "
            "the sweep again, which makes it again",
            record.digest,
        )

    def faults(self, record: Record) -> list[str]:
        """What is wrong with the record's files; nothing is changed."""
        found = []
        for blob in record.objects.values():
            with ExitStack() as stack:
                _, fault = self._fetch(stack, blob)
                if fault is not None:
                    found.append(f"{blob.path} {fault}")
        return found

    def _fetch(self, stack: ExitStack, blob: Blob) -> tuple[Path, str | None]:
        """A blob's local path, and what is wrong with it."""
        try:
            path = stack.enter_context(self.files.as_local(blob.path))
            doing = f"read {self.location}/{blob.path}"
            return path, self.files.patience.call(doing, lambda: self._fault(path, blob))
        except FileNotFoundError:
            return Path(blob.path), "is missing"

    def _fault(self, path: Path, blob: Blob) -> str | None:
        """What is wrong with a local file that should be the blob; None if nothing is."""
        if (odd := fault_of_file(path)) is not None:
            return odd
        stat = path.stat()
        if stat.st_size != blob.size_bytes:
            was = "cut short" if stat.st_size < blob.size_bytes else "changed"
            return f"has {stat.st_size} bytes and not {blob.size_bytes}: it was {was}"
        seen = (str(path), stat.st_size, stat.st_mtime_ns)
        if seen in _VERIFIED:
            return None
        if sha256_of(path) != blob.sha256:
            return "is not what was written: its SHA-256 is another"
        if self.files.is_local:  # a bucket's copy is another file each time
            _VERIFIED.add(seen)
        return None

    # Checkpoints

    def checkpoints(self, digest: str, phase: str = "train") -> list[int]:
        """Step counts at which a trajectory's (or a stage's) training state is stored, in order."""
        folder = f"{CHECKPOINTS}/{digest[:16]}/{phase}"
        return sorted(
            int(step)
            for step in self.files.list(folder)
            if _STEP.fullmatch(step) and self.files.exists(f"{folder}/{step}/{CHECKPOINT}")
        )

    def put_checkpoint(
        self, digest: str, step: int, tensors: Path, state: Any, phase: str = "train"
    ) -> None:
        """Store the training state at `step`, then forget the phase's earlier ones."""
        folder = f"{CHECKPOINTS}/{digest[:16]}/{phase}"
        earlier = self.checkpoints(digest, phase)
        blob = self._put(tensors, f"{folder}/{step}/tensors.safetensors")
        values = {"state": state, "size_bytes": blob.size_bytes, "sha256": blob.sha256}
        self.put_json(f"{folder}/{step}/{CHECKPOINT}", values)
        for old in earlier:
            if old < step:
                self.files.delete_folder(f"{folder}/{old}")

    @contextmanager
    def checkpoint(
        self, digest: str, step: int, phase: str = "train"
    ) -> Iterator[tuple[Path, Any]]:
        """The stored training state at `step`: a local safetensors path, and JSON values.

        Raises:
            StoreError: there is none, or it is damaged; a damaged one is deleted.
        """
        folder = f"{CHECKPOINTS}/{digest[:16]}/{phase}/{step}"
        with ExitStack() as stack:
            found = self._open_checkpoint(stack, folder)
            if found is None:
                raise StoreError(f"{folder} is not a complete checkpoint")
            try:
                if found.value is None:
                    raise UnreadableFile(f"{folder}: {found.fault}")
                yield found.value
            except UnreadableFile as error:
                self.files.delete_folder(folder)
                raise StoreError(f"{error}. It was deleted: run the sweep again") from error

    def checkpoint_fault(self, folder: str) -> str | None:
        """What is wrong with a training state, by its path; nothing is changed."""
        with ExitStack() as stack:
            found = self._open_checkpoint(stack, folder)
            return None if found is None else found.fault

    def _open_checkpoint(self, stack: ExitStack, folder: str) -> Found[tuple[Path, Any]] | None:
        tensors = f"{folder}/tensors.safetensors"
        found = self._look(
            f"{folder}/{CHECKPOINT}",
            lambda values: (Blob(tensors, values["size_bytes"], values["sha256"]), values["state"]),
        )
        if found is None or found.value is None:
            return None if found is None else Found(found.data, None, found.fault)
        blob, state = found.value
        path, fault = self._fetch(stack, blob)
        if fault is not None:
            return Found(found.data, None, f"{tensors} {fault}")
        return Found(found.data, (path, state))

    def drop_checkpoints(self, digest: str) -> None:
        """Forget all training states of a trajectory or a stage."""
        self.files.delete_folder(f"{CHECKPOINTS}/{digest[:16]}")

    # Failures and sweeps

    def put_failure(self, stage: Stage, failure: Failure) -> None:
        """Remember why a stage has no record."""
        self.put_json(json_path(FAILURES, stage.key), {"digest": stage.digest, **failure.to_json()})

    def failures(self) -> dict[str, Failure]:
        """The last failure of every stage without a record, by key; damaged ones are set aside."""
        keys = [name for name in self._names(FAILURES) if _KEY.fullmatch(name)]
        found = {key: self._sound(json_path(FAILURES, key), Failure.from_json) for key in keys}
        return {key: f.value for key, f in found.items() if f is not None and f.value is not None}

    def put_sweep(self, name: str, values: Mapping[str, Any]) -> None:
        """Remember a sweep as it was last run."""
        self.put_json(json_path(SWEEPS, name), values)

    def sweep(self, name: str) -> dict[str, Any] | None:
        """The sweep of that name as it was last run, or None.

        Raises:
            DamagedDocument: it is damaged.
        """
        return self.read_json(json_path(SWEEPS, name))

    def sweeps(self) -> list[str]:
        """The names of the sweeps that were run on this store."""
        return sorted(self._names(SWEEPS))

    # Files

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a stage's files; beside the store where a move is then a rename."""
        parent = None
        if self.files.is_local:
            parent = f"{self.root}/{SCRATCH}"
            self.files.patience.call(f"write {parent}", lambda: os.makedirs(parent, exist_ok=True))
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield Path(folder)

    def put_json(self, path: str, values: Mapping[str, Any]) -> None:
        """Write a document with its checksum.

        Raises:
            StoreError: it is nested too deeply, or is no JSON.
        """
        try:
            text = seal(path, values)
        except ValueError as error:
            raise StoreError(str(error)) from error
        self.files.write(path, text)

    def read_json(self, path: str) -> dict[str, Any] | None:
        """What `put_json` wrote; None if there is no such file.

        Raises:
            DamagedDocument: it is damaged.
        """
        found = self.look_at(path)
        if found is not None and found.fault is not None:
            raise DamagedDocument(
                f"{self.location}/{path} is damaged ({found.fault}): delete it; the next run that "
                "needs it writes it again"
            )
        return found.value if found is not None else None

    def _look(self, path: str, parse: Callable[[dict[str, Any]], T]) -> Found[T] | None:
        data, fault = None, ""
        for _ in range(1 if self.files.is_local else 2):  # it may have been damaged on its way
            try:
                data = self.files.read_bytes(path)
                return None if data is None else Found(data, parse(unseal(path, data)))
            except NotAFile as error:
                data, fault = None, str(error)
            except (ValueError, KeyError, TypeError) as error:
                fault = str(error) if isinstance(error, ValueError) else f"it lacks {error}"
        return Found(data, None, fault)

    def _sound(self, path: str, parse: Callable[[dict[str, Any]], T]) -> Found[T] | None:
        """A document; one that is damaged is set aside."""
        found = self._look(path, parse)
        if found is not None and found.fault is not None:
            set_aside(self.files, path, found.data, found.fault)
        return found

    def _names(self, folder: str) -> list[str]:
        """The documents right below."""
        return [name_in(name) for name in self.files.list(folder) if name.endswith(".json")]

    def _put(self, source: Path, path: str) -> Blob:
        return Blob(path, *self.files.put(source, path))


def _moved(now: Any, then: Any, path: str, uncounted: Collection[str]) -> Iterator[str]:
    """Settings that both sides have, that count and differ; a new setting is not a moved one."""
    if path in uncounted:
        return
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        for name in now.keys() & then.keys():
            yield from _moved(now[name], then[name], f"{path}.{name}" if path else name, uncounted)
    elif now != then:
        yield f"{path} was {then!r} and is {now!r}"
