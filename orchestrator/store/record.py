"""What a stage leaves behind in the store."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.artifacts import Provenance
from orchestrator.core.digest import sha256
from orchestrator.core.errors import StoreError
from orchestrator.core.stage import Stage
from orchestrator.store.paths import OBJECTS, RECORDS, check_path, json_path
from orchestrator.store.sealed import seal

SCHEMA = 2


class LaterRecord(StoreError):
    """A later Resurge wrote it: it is whole, and stays."""


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
    provenance: Provenance
    inputs: Mapping[str, str] = field(default_factory=dict)
    schema: int = field(default=SCHEMA)

    @classmethod
    def of(
        cls,
        stage: Stage,
        metrics: Mapping[str, float],
        objects: Mapping[str, Blob],
        started: str,
        seconds: float,
        provenance: Provenance,
    ) -> Record:
        """What a stage is, with what it left behind."""
        return cls(
            digest=stage.digest,
            kind=stage.kind,
            plugin=stage.plugin,
            version=stage.version,
            identity=stage.identity,
            settings=stage.settings,
            seed=stage.seed,
            parent=stage.parent.digest if stage.parent else None,
            metrics=metrics,
            objects=objects,
            started=started,
            seconds=seconds,
            provenance=provenance,
            inputs={name: made.digest for name, made in stage.inputs.items()},
        )

    @property
    def key(self) -> str:
        """The first 16 hex digits of the digest."""
        return self.digest[:16]

    def identified(self) -> str:
        """The digest of what the record says that it is; that of an intact one is `digest`."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "plugin": self.plugin,
            "version": self.version,
            "identity": self.identity,
            "seed": self.seed,
            "parent": self.parent,
        }
        return sha256(values | ({"inputs": self.inputs} if self.inputs else {}))

    def without(self, name: str) -> Record:
        """The same record without one of its files."""
        kept = {other: blob for other, blob in self.objects.items() if other != name}
        return dataclasses.replace(self, objects=kept)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """The record as it is stored."""
        return seal(json_path(RECORDS, self.key), self.to_json())

    @classmethod
    def from_json(cls, key: str, values: dict[str, Any]) -> Record:
        """The inverse of `to_json`, of the record with that 16-digit key.

        Raises:
            ValueError: it has not a record's schema, its digest is another stage's, or it names a
                file outside the store's objects.
            LaterRecord: a later Resurge wrote it.
        """
        if "schema" not in values:
            raise ValueError("it is no record")
        if isinstance(values["schema"], int) and values["schema"] > SCHEMA:
            raise LaterRecord(
                f"record {str(values.get('digest'))[:16]} has schema {values['schema']} and this "
                f"Resurge reads {SCHEMA}: use the version that wrote it, or a later one"
            )
        _check_types(values | {"inputs": values.get("inputs", {})}, _TYPES, "it")
        if not re.fullmatch(r"[0-9a-f]{64}", values["digest"]):
            raise ValueError("its digest is not 64 hex digits")
        for name, number in values["metrics"].items():
            if not isinstance(number, int | float):
                raise ValueError(f"its metric {name!r} is no number")
        for name, blob in values["objects"].items():
            where = f"{OBJECTS}/{values['digest'][:16]}-"
            if not isinstance(blob, dict):
                raise ValueError(f"its object {name!r} is not described")
            _check_types(blob, _BLOB_TYPES, f"its object {name!r}")
            try:
                check_path(name)
                check_path(blob["path"])
            except StoreError as error:
                raise ValueError(f"its object {name!r} is outside the store: {error}") from error
            if not blob["path"].startswith(where):
                raise ValueError(f"its object {name!r} is not below {where}…")
        record = cls.read(values)
        if record.key != key:
            raise ValueError(f"it is the record of {record.key}")
        if record.identified() != record.digest:
            raise ValueError("its digest is not that of its identity")
        return record

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Record:
        """Of values that `from_json` has found right before."""
        objects = {name: Blob(**blob) for name, blob in values["objects"].items()}
        return cls(**{**values, "objects": objects})


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "digest": str,
    "kind": str,
    "plugin": str,
    "version": int,
    "identity": dict,
    "settings": dict,
    "seed": (int, type(None)),
    "parent": (str, type(None)),
    "metrics": dict,
    "objects": dict,
    "started": str,
    "seconds": (int, float),
    "provenance": dict,
    "inputs": dict,
    "schema": int,
}

_BLOB_TYPES: Mapping[str, type] = {"path": str, "size_bytes": int, "sha256": str}


def _check_types(
    values: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]], what: str
) -> None:
    if odd := sorted(values.keys() ^ types.keys()):
        raise ValueError(f"{what} lacks, or has beside its schema: {', '.join(odd)}")
    for name, expected in types.items():
        if not isinstance(values[name], expected):
            raise ValueError(f"{what} has {name} of the type {type(values[name]).__name__}")
