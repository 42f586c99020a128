"""Plug-ins: everything with a name, a version and settings that a sweep file can ask for.

A plug-in file is import-light: torch and friends are imported inside methods, so that a sweep can
be validated and hashed on a head that has none of them. A new plug-in is one new file in
`workers/<kind>s/`, in the folder named by RESURGE_PLUGINS, or behind an entry point of the group
`resurge.plugins`; no list is edited.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet, Target
from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings

PluginKind = Literal[
    "base",
    "unlearner",
    "material",
    "dataset",
    "update",
    "evaluation",
    "metric",
    "recipe",
    "executor",
]


class Plugin(ABC):
    """Base of every plug-in.

    A subclass sets `kind` (its kind's base class does), `name` (what a sweep file says) and
    `version`, which is raised whenever the same settings would give another result. The first line
    of its docstring is its description.
    """

    kind: ClassVar[PluginKind]
    name: ClassVar[str]
    version: ClassVar[int] = 1
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: BaseModel) -> None:
        self.settings: Any = settings

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    def fingerprint(self) -> str:
        """A digest of what the settings point at (a folder's files); empty if nothing."""
        return ""

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """Why this plug-in cannot be used with that base and concept; empty if it can."""
        return []

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """The same of what is erased: a concept, or several jointly."""
        found = (what for concept in erased.concepts for what in self.problems(base, concept))
        return list(dict.fromkeys(found))

    @classmethod
    def doubts(cls, used: Sequence[Any]) -> list[str]:
        """What a sweep's settings may not be meant to mean; nothing is stopped by it.

        `used` are the settings that the sweep has of this plug-in, each once.
        """
        return []


HELD_OUT = (
    "a snapshot of {}",
    "a postcard of {}",
    "a studio photograph of {}",
    "a scene with {}",
    "a view of {}",
    "an oil painting of {}",
    "a watercolour of {}",
    "a charcoal drawing of {}",
    "a statue of {}",
    "somebody took a picture of {}",
)
"""Of a base that has none of its own: neither a base's templates nor any method's."""


class BasePlugin(Plugin):
    """What planning needs to know of a base model."""

    kind = "base"
    guidance: ClassVar[float] = 7.5
    sampler_steps: ClassVar[int] = 50
    evaluation: ClassVar[Literal["templates", "held_out"]] = "templates"
    """The set that models are asked where a sweep names none: `held_out`, if the methods' own
    defaults train on the base's prompts."""

    @abstractmethod
    def concepts(self) -> tuple[str, ...] | None:
        """The concepts that the base knows; None if any text is allowed."""

    @abstractmethod
    def prompts(self, concept: str) -> tuple[str, ...]:
        """The prompts that ask for `concept`; they are the clusters of the statistics."""

    def bare(self, concept: str) -> str:
        """The concept and nothing else, as a prompt: by default its words."""
        return concept

    def held_out(self, concept: str) -> tuple[str, ...]:
        """Other prompts that ask for `concept`: no method trains on them unless it is told to."""
        return tuple(template.replace("{}", concept) for template in HELD_OUT)

    @abstractmethod
    def retained(self, concept: str) -> tuple[str, ...]:
        """Concepts that should survive when `concept` is erased: the model's health."""

    def retained_prompts(self, concept: str) -> tuple[str, ...]:
        """Every prompt for every concept that should survive."""
        return tuple(p for other in self.retained(concept) for p in self.prompts(other))

    def anchor(self, concept: str) -> str:
        """What methods that map a concept to another map it to: by default a retained one."""
        return next(iter(self.retained(concept)), "")

    @abstractmethod
    def never_known(self) -> str | None:
        """A concept that the base was never shown; None if there is none to name."""

    def as_read(self, text: str) -> str:
        """Equal for texts that the model cannot tell apart, because its tokenizer does not.

        Concepts are compared by it. By default every difference counts.
        """
        return text

    def shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """The shapes of the weights that edits may change, by "unet.…" and "text_encoder.…", where
        files say so; None if that takes loading the model.
        """
        return None

    def unread(self, prompt: str) -> str:
        """Why the end of a prompt would not be read; '' if it is, or if that cannot be told yet."""
        return ""


class _BaseOfSet(BasePlugin):
    """A base as plug-ins see it that erase a set: what is erased beside a concept is neither
    retained nor its anchor, and the set's own anchors come first.
    """

    def __init__(self, base: BasePlugin, erased: ConceptSet) -> None:
        super().__init__(base.settings)
        self.base, self.erased = base, erased
        self._gone = {base.as_read(concept) for concept in erased.gone}

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.base.name

    @property
    def guidance(self) -> float:  # type: ignore[override]
        return self.base.guidance

    @property
    def sampler_steps(self) -> int:  # type: ignore[override]
        return self.base.sampler_steps

    @property
    def evaluation(self) -> Literal["templates", "held_out"]:  # type: ignore[override]
        return self.base.evaluation

    def concepts(self) -> tuple[str, ...] | None:
        return self.base.concepts()

    def prompts(self, concept: str) -> tuple[str, ...]:
        return self.base.prompts(concept)

    def bare(self, concept: str) -> str:
        return self.base.bare(concept)

    def held_out(self, concept: str) -> tuple[str, ...]:
        return self.base.held_out(concept)

    def retained(self, concept: str) -> tuple[str, ...]:
        return self._retained

    @cached_property
    def _retained(self) -> tuple[str, ...]:
        """Asked by every concept of a set, and of a hundred by a hundred it takes its time."""
        return retained_of(self.base, self.erased)

    def anchor(self, concept: str) -> str:
        if concept in self.erased.anchors:
            return self.erased.anchors[concept]
        every = (self.base.anchor(concept), *self.base.retained(concept))
        return next((other for other in every if self.base.as_read(other) not in self._gone), "")

    def never_known(self) -> str | None:
        return self.base.never_known()

    def as_read(self, text: str) -> str:
        return self.base.as_read(text)

    def shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        return self.base.shapes()

    def unread(self, prompt: str) -> str:
        return self.base.unread(prompt)


def base_of(base: BasePlugin, erased: ConceptSet) -> BasePlugin:
    """The base as a method sees it that erases this."""
    return base if erased.is_plain and not erased.beside else _BaseOfSet(base, erased)


def retained_of(base: BasePlugin, erased: ConceptSet) -> tuple[str, ...]:
    """What should survive of all that the base retains beside the erased concepts."""
    gone = {base.as_read(concept) for concept in erased.gone}
    every = (other for concept in erased.gone for other in base.retained(concept))
    if len(erased.gone) == 1:
        return tuple(every)
    return tuple(dict.fromkeys(other for other in every if base.as_read(other) not in gone))


class UnlearnerPlugin(Plugin):
    """What planning needs to know of an unlearning method.

    `seeded` is False for a method without randomness: its result is then shared by all seeds.
    `changes` is False for the baseline that leaves the model alone. `uses` says which of
    "retained" (prompts of what should survive), "anchors" (the erased prompts with another concept
    in its place) and "given anchors" (the same where a set names one: elsewhere the concept is
    mapped to the setting `target`) the method reads: the others are no part of its identity.
    `joint` is True for a method that can erase several concepts at once; `jointly` says how, and
    what was published of it; `trains_each` that it has a training for each of them. `golden` says
    what of it is compared with numbers of its released code; "" if nothing is. `is_method` is
    False for what applies weights that others made: it erases whatever they erase.
    """

    kind = "unlearner"
    seeded: ClassVar[bool] = True
    changes: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    jointly: ClassVar[str] = ""
    is_method: ClassVar[bool] = True
    trains_each: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = ""
    golden: ClassVar[str] = ""

    def anchor(self, base: BasePlugin, concept: str) -> str:
        """The concept that stands in for the erased one: the settings' own, or the base's."""
        chosen = getattr(self.settings, "anchor", None)
        return base.anchor(concept) if chosen is None else str(chosen)

    def prompts(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """What the method trains on when it is told of `concept`: the bare concept, its own
        templates, filled in, or the base's prompts.
        """
        chosen = getattr(self.settings, "prompts", "base")
        if chosen == "base":
            return base.prompts(concept)
        if chosen == "bare":
            return (base.bare(concept),)
        return tuple(template.replace("{concept}", concept) for template in chosen)

    def preserved(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """The concepts that the method is told to preserve: the settings' own, or the base's."""
        chosen = getattr(self.settings, "preserve", "base")
        return base.retained(concept) if chosen == "base" else tuple(chosen)

    def preserved_prompts(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """Every prompt for every concept that it is told to preserve."""
        return tuple(p for o in self.preserved(base, concept) for p in self.prompts(base, o))

    def targets(self, base: BasePlugin, erased: ConceptSet) -> tuple[Target, ...]:
        """What the method is told of each concept that it erases."""
        seen = base_of(base, erased)

        def target(concept: str) -> Target:
            is_mapped = self._is_mapped(erased, concept)
            anchor = self.prompts(seen, self.anchor(seen, concept)) if is_mapped else ()
            return Target(concept, self.prompts(seen, concept), anchor)

        return tuple(map(target, erased.concepts))

    def _is_mapped(self, erased: ConceptSet, concept: str) -> bool:
        is_given = "given anchors" in self.uses and concept in erased.anchors
        return is_given or "anchors" in self.uses

    def kept_prompts(self, base: BasePlugin, erased: ConceptSet) -> tuple[str, ...]:
        """What the method is told to preserve beside all that it erases."""
        return self.preserved_prompts(base_of(base, erased), erased.concepts[0])

    def all_prompts(self, base: BasePlugin, erased: ConceptSet) -> tuple[str, ...]:
        """What it trains on when it is told of every concept, one after another."""
        return tuple(p for target in self.targets(base, erased) for p in target.prompts)

    def all_anchor_prompts(self, base: BasePlugin, erased: ConceptSet) -> tuple[str, ...]:
        """The same with each concept's anchor in its place."""
        return tuple(p for target in self.targets(base, erased) for p in target.anchor_prompts)

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Materials to work from, by the name under which the method finds them."""
        return {}

    def passes(self) -> int:
        """UNet passes over one latent, a backward pass counted as two; 0 in closed form."""
        return 0

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """Of several concepts also what their being erased jointly forbids."""
        if len(erased.concepts) > 1 and not self.joint:
            return [
                f"unlearner {self.name!r} erases one concept at a time and cannot erase "
                f"{len(erased.concepts)} jointly ({erased.name!r}); leave it out, or name them "
                "one by one, or give the edit `order: continual`"
            ]
        found = super().problems_of(base_of(base, erased), erased)
        is_alone = erased.is_plain and not erased.beside
        return found if found or is_alone else self._problems_of_set(base, erased)

    def _problems_of_set(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        seen, found = base_of(base, erased), []
        gone = {base.as_read(concept): concept for concept in erased.gone}
        for concept in erased.concepts:
            if not self._is_mapped(erased, concept):
                continue
            anchor = self.anchor(seen, concept)
            said = erased.anchors.get(concept, anchor)
            # Only a method that otherwise maps to a text has this setting beside a set's anchors.
            target = getattr(self.settings, "target", "") if "anchors" not in self.uses else ""
            if target or said != anchor:
                found.append(
                    f"unlearner {self.name!r} maps {concept!r} to {target or anchor!r} by its "
                    f"settings but {erased.name!r} maps it to {said!r}; leave one of them out"
                )
            elif base.as_read(anchor) in gone:
                found.append(
                    f"unlearner {self.name!r}: the anchor of {concept!r}, {anchor!r}, is "
                    f"erased too; set `anchors` of {erased.name!r}"
                )
            elif "anchors" not in self.uses:
                with suppress(ResurgeError):  # one that the base does not know is told where it is
                    base.prompts(said)
                    found += self._problems_of_anchor(seen, concept)
        for other in self.preserved(seen, erased.concepts[0]) if "retained" in self.uses else ():
            if base.as_read(other) in gone:
                found.append(
                    f"unlearner {self.name!r} is told to preserve {other!r}, which "
                    f"{erased.name!r} erases"
                )
        return found

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """A method that needs an anchor needs one other than the concept, asked for in as many
        prompts.
        """
        found = []
        if "retained" not in self.uses and getattr(self.settings, "preserve", "base") != "base":
            found.append(f"unlearner {self.name!r} preserves nothing by name; leave out `preserve`")
        with suppress(ResurgeError):  # a concept that the base does not know is told elsewhere
            read = self.prompts(base, concept)
            if "retained" in self.uses:
                read += self.preserved_prompts(base, concept)
            found += [why for why in map(base.unread, read) if why][:1]
        return found + (self._problems_of_anchor(base, concept) if "anchors" in self.uses else [])

    def _problems_of_anchor(self, base: BasePlugin, concept: str) -> list[str]:
        anchor = self.anchor(base, concept)
        how = "set its `anchor`, or the base's"
        if not anchor or base.as_read(anchor) == base.as_read(concept):
            return [f"unlearner {self.name!r} needs an anchor concept beside {concept!r}; {how}"]
        try:
            given = len(self.prompts(base, anchor))
        except ResurgeError as error:
            return [f"unlearner {self.name!r}: anchor: {error}"]
        if given != len(self.prompts(base, concept)):
            return [
                f"unlearner {self.name!r}: anchor {anchor!r} is another kind of thing than "
                f"{concept!r}; {how}"
            ]
        return []


class MaterialPlugin(Plugin):
    """What a method works from beside the model: pictures, masks, sums over captions.

    Each is a stage of its own, made once for a model and shared by every method and sweep.
    """

    kind = "material"


@dataclass(frozen=True)
class Need:
    """A material that a method asks for; `of` is another that it is made from."""

    plugin: MaterialPlugin
    asked: Mapping[str, Any] = field(default_factory=dict)
    of: Need | None = None


class DatasetPlugin(Plugin):
    """What planning needs to know of a fine-tuning data set.

    `uses_concept` is False for a set that is the same whatever was erased: its fine-tunes of the
    base are then shared by all concepts. `joint` is True for a set that can be made for several
    erased concepts.
    """

    kind = "dataset"
    uses_concept: bool = True
    joint: bool = False

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """Of several concepts also whether the set knows more than one."""
        if len(erased.concepts) > 1 and self.uses_concept and not self.joint:
            return [
                f"dataset {self.name!r} is made for one erased concept and {erased.name!r} has "
                f"{len(erased.concepts)}; use one that does not depend on what was erased"
            ]
        return super().problems_of(base, erased)


class UpdatePlugin(Plugin):
    """What planning needs to know of a change of weights that was made elsewhere.

    Its settings have a `scale`; at 0 the model is what it was.
    """

    kind = "update"


class EvaluationPlugin(Plugin):
    """What planning needs to know of an evaluation set: the rows that every model is asked.

    The rows are what a sample stage is identified by, so a set is a way of writing them: the same
    rows of another set, or of another version, are the same pictures.
    """

    kind = "evaluation"

    @abstractmethod
    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> Sequence[Probe]:
        """What a model is asked from which these concepts are erased, together if they are several.

        Raises:
            ResurgeError: what the settings point at cannot be read, or is not of these concepts.
        """


@dataclass(frozen=True)
class Asked:
    """What every model of a sweep is asked to draw when a concept is erased.

    `retained` are the concepts that should survive, of whichever role; `pictures` counts the
    pictures by role: "erased", "retained", "other", …
    """

    retained: tuple[str, ...]
    pictures: Mapping[str, int]


class MetricPlugin(Plugin):
    """What planning needs to know of a metric.

    `needs` says what is scored: a model's pictures ("images"), its weights beside those of the base
    and of the unlearned model ("weights"), or the model at work ("pipeline": an attack, a loss).
    `of` are the kinds of models that it is defined on. `reference` asks for the base's pictures of
    the same prompts too. `per_picture` is False where single pictures have no value (FID): such a
    metric cannot be the one that resurgence is defined on. `values` are the bounds of its values,
    None where there is no bound; `higher` says what more of it means. `samples` is for a metric of
    the model at work that draws pictures: it is told how the sweep's are drawn. `joint` is True for
    one that can be about several erased concepts; pictures and weights always can. `strangers` is
    for one of the model at work that also looks at the concept that the base never knew.
    """

    kind = "metric"
    needs: ClassVar[Literal["images", "weights", "pipeline"]] = "images"
    of: ClassVar[frozenset[str]] = frozenset({"base", "unlearn", "finetune", "merge"})
    reference: ClassVar[bool] = False
    per_picture: ClassVar[bool] = True
    values: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    higher: ClassVar[str] = "more of the concept"
    samples: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    strangers: ClassVar[bool] = False

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """Of several concepts also whether the metric can be about more than one."""
        if self.needs == "pipeline" and len(erased.concepts) > 1 and not self.joint:
            return [
                f"metric {self.name!r} is about one concept and {erased.name!r} has "
                f"{len(erased.concepts)}; leave it out, or erase them one by one"
            ]
        return super().problems_of(base, erased)

    @property
    def gives_resurgence(self) -> bool:
        """Whether it has a value of every single picture, so that models can be paired by them."""
        return self.needs == "images" and self.per_picture

    def roles(self, asked: Asked) -> frozenset[str]:
        """Of the roles that are asked those whose pictures it has values of."""
        return frozenset(asked.pictures) if self.gives_resurgence else frozenset()

    def judged_by(self) -> str:
        """Who judges, in a few words: a model at a commit, and what of it is the value."""
        return ""

    def problems_with(self, asked: Asked) -> list[str]:
        """Why this metric cannot score what the models are asked to draw; empty if it can.

        The erased concept is left to `problems`.
        """
        return []


class RecipePlugin(Plugin):
    """Work that is no choice of the user's but has settings and a version: finetune, sample."""

    kind = "recipe"

    def needs(self, base: BasePlugin) -> Mapping[str, Need]:
        """Materials to work from, made of the model that the work begins with."""
        return {}

    def tokens(self) -> Mapping[str, str]:
        """Words that the work teaches to the model, each with the word as which it begins: models
        that have not learned it read it so.
        """
        return {}
