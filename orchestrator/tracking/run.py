"""A run as MLflow will show it: plain values, before anything is sent."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from orchestrator.core.digest import sha256
from orchestrator.store.store import Record, Store
from orchestrator.tracking.inputs import DataInput

RunKind = Literal["sweep", "trajectory", "trial", "study", "confirmed"]
RunStatus = Literal["RUNNING", "FINISHED", "FAILED"]
CONFIRMED, WORST_CASE = "resurge.confirmed", "resurge.worst_case"


@dataclass(frozen=True)
class MetricPoint:
    """A number at an optimiser step."""

    name: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True)
class File:
    """An artifact that is made when it is needed; `digest` changes when it would."""

    digest: str
    make: Callable[[], bytes]


@dataclass(frozen=True)
class Run:
    """One run: what it is called, what it logs.

    `key` tells it from the sweep's other runs and does not change while more becomes known;
    `parent` is the key of the run above it. `images` are the sample records to draw a grid of, by
    optimiser step; `texts` and `files` are artifacts; `data` are the data sets that the model was
    fine-tuned on.
    """

    kind: RunKind
    key: str
    name: str
    status: RunStatus
    start_ms: int
    end_ms: int
    parent: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[MetricPoint, ...] = ()
    images: Mapping[int, Record] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    data: tuple[DataInput, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Changes when there is something to write."""
        shown = {
            "head": [self.kind, self.key, self.name, self.status],
            "params": dict(self.params),
            "tags": dict(self.tags),
            "points": [[p.name, repr(p.value), p.step, p.time_ms] for p in self.points],
            "images": {str(step): record.key for step, record in self.images.items()},
            "texts": dict(self.texts),
            # Where the store is says nothing about the data.
            "data": [asdict(replace(one, source="")) for one in self.data],
        }
        if self.files:
            shown["files"] = {name: file.digest for name, file in self.files.items()}
        return sha256(shown)


class View(Protocol):
    """What MLflow should show under one experiment."""

    @property
    def name(self) -> str:
        """The experiment's name."""

    @property
    def store(self) -> Store:
        """Where the runs' images are."""

    def runs(self, only_new: bool = False) -> Iterable[Run]:
        """The runs as of now, a parent before those below it; it may leave out those that were
        shown as they are now when all were last asked for to the end.
        """

    def holds(self, key: str) -> bool:
        """Whether a run belongs to it, shown now or not."""


def as_params(params: Mapping[str, Any]) -> dict[str, str]:
    """As MLflow compares and plots them: numbers as numbers, true and false as in YAML."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in params.items()
        if value is not None
    }


def points_of(
    numbers: Mapping[str, float | None], step: int, time_ms: int
) -> Iterator[MetricPoint]:
    for name, value in numbers.items():
        # MLflow would show the largest float in the place of an infinite one.
        if value is not None and not math.isinf(value):
            yield MetricPoint(name, value, step, time_ms)


def start_of(record: Record) -> int:
    """When the work on it began, in milliseconds."""
    return round(datetime.datetime.fromisoformat(record.started).timestamp() * 1000)


def end_of(record: Record) -> int:
    """When the work on it ended, in milliseconds."""
    return start_of(record) + round(record.seconds * 1000)


@dataclass
class Made:
    """When, where and by which of our commits records were made; they are counted one by one."""

    start_ms: int = 0
    end_ms: int = 0
    _newest: str = ""
    _git_sha: str | None = None
    _counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Made:
        """All of these."""
        made = cls()
        for record in records:
            made.count(record)
        return made

    def count(self, record: Record) -> None:
        """One more."""
        start_ms, text = start_of(record), json.dumps(dict(record.provenance), sort_keys=True)
        self.start_ms = min(self.start_ms, start_ms) if self._counts else start_ms
        self.end_ms = max(self.end_ms, end_of(record))
        self._counts[text] = self._counts.get(text, 0) + 1
        if record.started > self._newest:
            self._newest, self._git_sha = record.started, record.provenance.get("git_sha")

    def commit_tags(self) -> dict[str, str]:
        """The commit of our code that the newest record was made with."""
        sha = self._git_sha
        return {"resurge.git_sha": sha, "mlflow.source.git.commit": sha} if sha else {}

    def environments(self) -> str:
        """Every environment that the records were made in, and how many in each."""
        counts = sorted(self._counts.items())
        return json.dumps([{"records": n, **json.loads(text)} for text, n in counts], indent=1)
