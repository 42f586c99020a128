"""Stage: one piece of work, identified by what it computes and never by where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from orchestrator.core.digest import Canonical, canonical_json, sha256_of_text

StageKind = Literal["base", "prepare", "unlearn", "finetune", "merge", "sample", "score"]


@dataclass(frozen=True, eq=False)
class Stage:
    """A node of the plan's tree.

    `identity` holds what is hashed: under "settings" the plug-in's settings that differ from their
    defaults, beside it what the plan decided (the concept, the prompts, the data set). `settings`
    has the same keys with every setting written out; it is stored, and compared on a hit. `inputs`
    are prepared materials and data sets that the stage reads beside its parent. `uncounted` are
    settings on which its result does not hang ("settings.batch_size"): a record may have others.
    The root has the kind "base" and no parent; it is a model to load, not work to do.
    """

    kind: StageKind
    plugin: str
    version: int
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int | None
    parent: Stage | None
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    uncounted: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """64 hex digits of kind, plug-in, version, identity, seed, the parent and the inputs."""
        return self._digest_with(self.identity)

    @property
    def key(self) -> str:
        """The first 16 hex digits, for paths and displays."""
        return self.digest[:16]

    @cached_property
    def trajectory(self) -> str | None:
        """What all step counts of one fine-tuning recipe share; None for other stages.

        A schedule that depends on the total step count makes every step count a trajectory of its
        own, because training to 250 is then not the beginning of training to 500.
        """
        if self.kind != "finetune":
            return None
        is_open = self.settings["settings"]["schedule"] == "constant"
        shared = self.identity if isinstance(self.identity, Canonical) else Canonical(self.identity)
        return self._digest_with(shared.without_steps if is_open else shared)

    @property
    def steps(self) -> int:
        """Optimiser steps of a fine-tune; 0 for other stages."""
        return int(self.settings["settings"]["steps"]) if self.kind == "finetune" else 0

    @property
    def is_model(self) -> bool:
        """Whether the stage's result is a model."""
        return self.kind in ("base", "unlearn", "finetune", "merge")

    @property
    def unlearns(self) -> bool:
        """Whether it erases: an unlearning, or a merge of what another one changed."""
        donor = self.inputs.get("donor") if self.kind == "merge" else None
        return self.kind == "unlearn" or (donor is not None and donor.unlearns)

    @property
    def model(self) -> Stage:
        """The nearest stage, this one included, whose result is a model."""
        stage = self
        while not stage.is_model:
            assert stage.parent is not None  # a plan's root is a base
            stage = stage.parent
        return stage

    def ancestry(self) -> Iterator[Stage]:
        """This stage, its parent, … up to the base."""
        stage: Stage | None = self
        while stage is not None:
            yield stage
            stage = stage.parent

    @cached_property
    def lineage(self) -> tuple[Stage, ...]:
        """Everything that must be done for this stage, itself last; the base is no work."""
        before = (*((self.parent,) if self.parent else ()), *self.inputs.values())
        found = dict.fromkeys(s for stage in before for s in stage.lineage)
        return (*found, self) if self.kind != "base" else ()

    def _digest_with(self, identity: Mapping[str, Any]) -> str:
        # Canonical JSON of an object with these seven keys (six without inputs), put together by
        # hand: most stages share their identity, whose text is made once.
        digests = {name: stage.digest for name, stage in self.inputs.items()}
        inputs = f'"inputs":{canonical_json(digests)},' if digests else ""
        parent = f'"{self.parent.digest}"' if self.parent else "null"
        seed = "null" if self.seed is None else self.seed
        return sha256_of_text(
            f'{{"identity":{canonical_json(identity)},{inputs}"kind":"{self.kind}","parent":{parent},'
            f'"plugin":{canonical_json(self.plugin)},"seed":{seed},"version":{self.version}}}'
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Stage({self.kind} {self.plugin} {self.key})"
