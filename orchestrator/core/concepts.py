"""What one unlearning erases: a concept, or several jointly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

JOINED_BY = "+"


@dataclass(frozen=True)
class ConceptSet:
    """Concepts that are erased jointly, and what the sweep and its results call them.

    A concept on its own is a set that has its name. `anchors` are the concepts that methods which
    map a concept to another map it to, where the sweep file says so. `file` is where the concepts
    were read from; what they are is all that counts. `beside` are concepts that the same trial
    erases in other steps: nothing is to preserve them either.
    """

    name: str
    concepts: tuple[str, ...]
    anchors: Mapping[str, str] = field(default_factory=dict, hash=False)
    file: str | None = field(default=None, compare=False)
    beside: tuple[str, ...] = ()

    @classmethod
    def of(cls, concept: str) -> ConceptSet:
        """A concept on its own."""
        return cls(concept, (concept,))

    @property
    def is_plain(self) -> bool:
        """Whether its name says all of it."""
        return self.concepts == (self.name,) and not self.anchors

    @property
    def gone(self) -> tuple[str, ...]:
        """Every concept that the trial erases."""
        return tuple(dict.fromkeys((*self.concepts, *self.beside)))

    def within(self, trial: ConceptSet) -> ConceptSet:
        """This part of what a trial erases, with the trial's anchors."""
        anchors = {c: trial.anchors[c] for c in self.concepts if c in trial.anchors}
        beside = tuple(c for c in trial.concepts if c not in self.concepts)
        return replace(self, anchors={**anchors, **self.anchors}, beside=beside)

    def apart(self) -> tuple[ConceptSet, ...]:
        """Each of its concepts on its own."""
        return tuple(ConceptSet.of(concept).within(self) for concept in self.concepts)

    def canonical(self) -> str | dict[str, Any]:
        """As a sweep file may have it."""
        if self.is_plain:
            return self.name
        values = {"name": self.name, "concepts": list(self.concepts)}
        return {**values, **({"anchors": dict(self.anchors)} if self.anchors else {})}

    @classmethod
    def read(cls, values: str | Mapping[str, Any]) -> ConceptSet:
        """The inverse of `canonical`."""
        if isinstance(values, str):
            return cls.of(values)
        return cls(values["name"], tuple(values["concepts"]), dict(values.get("anchors", {})))


def joined(concepts: Iterable[str]) -> str:
    """What a set without a name is called."""
    return JOINED_BY.join(concepts)


@dataclass(frozen=True)
class Target:
    """A concept to erase: prompts that ask for it, and the same with its anchor in its place, in
    the same order, for methods that map it to another.
    """

    concept: str
    prompts: tuple[str, ...]
    anchor_prompts: tuple[str, ...] = ()


class Targeted:
    """What has several targets, and is asked for the concept or the prompts of them all."""

    targets: tuple[Target, ...]

    @property
    def concept(self) -> str:
        """The concept, for what knows only one."""
        [target] = self.targets
        return target.concept

    @property
    def prompts(self) -> tuple[str, ...]:
        """What asks for the concepts."""
        return tuple(prompt for target in self.targets for prompt in target.prompts)


def as_settings(targets: Sequence[Target]) -> dict[str, Any]:
    """Targets as a stage's settings hold them: those of one concept side by side, several under
    "targets".
    """
    values = [_as_settings(target) for target in targets]
    return values[0] if len(values) == 1 else {"targets": values}


def _as_settings(target: Target) -> dict[str, Any]:
    values: dict[str, Any] = {"concept": target.concept, "prompts": list(target.prompts)}
    return values | (
        {"anchor_prompts": list(target.anchor_prompts)} if target.anchor_prompts else {}
    )


def targets_of(settings: Mapping[str, Any]) -> tuple[Target, ...]:
    """The inverse of `as_settings`."""
    return tuple(
        Target(one["concept"], tuple(one["prompts"]), tuple(one.get("anchor_prompts", ())))
        for one in settings.get("targets", (settings,))
    )


def concepts_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The concepts of the targets."""
    return tuple(one["concept"] for one in settings.get("targets", (settings,)))
