"""UnlearnCanvas's three accuracies: unlearning, retaining within the domain and across domains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field, model_validator

from orchestrator.core.artifacts import ASKS_ERASED, KEPT, Role
from orchestrator.core.errors import DataError
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import BasePlugin
from workers.data.files import PlaceText
from workers.data.pinned import Source
from workers.interfaces.metric import Picture, Score
from workers.judging.classes import (
    NoClassError,
    aliases,
    load_classifier,
    names_ahead,
    names_of,
    plain,
)
from workers.judging.model_metric import REVISION, SourceMetric, SourceSettings
from workers.judging.shapes_judge import judged


class UnlearnCanvasSettings(SourceSettings):
    """Who says which style and which object a picture shows."""

    MODELS: ClassVar[Mapping[str, str]] = {
        "styles": "styles_revision",
        "objects": "objects_revision",
    }
    WORDS: ClassVar[frozenset[str]] = frozenset({"judge"})

    styles: PlaceText = Field(
        "judge",
        description="judge: the bundled world's, for both; or a classifier of styles: a folder or "
        "a repository id",
    )
    styles_revision: str | None = Field(None, description=REVISION)
    objects: PlaceText = Field("judge", description="the same for objects")
    objects_revision: str | None = Field(None, description=REVISION)

    @model_validator(mode="after")
    def _are_both_or_none(self) -> UnlearnCanvasSettings:
        if (self.styles == "judge") != (self.objects == "judge"):
            raise ValueError(
                "styles and objects must both be classifiers, or both 'judge', but got "
                f"{self.styles!r} and {self.objects!r}"
            )
        return self


@dataclass(frozen=True)
class Domain:
    """A kind of concept: its words, and for each picture the words of what it shows."""

    words: frozenset[str]
    shown: Sequence[frozenset[str]]


class UnlearnCanvas(SourceMetric):
    """UA, IRA and CRA: erased, and kept in the concept's own domain and in the others.

    UnlearnCanvas (Zhang et al., NeurIPS 2024 Datasets): UA is the share of the erased concept's
    pictures that are not classified as it; IRA and CRA are the accuracies, over the pictures of
    what should survive, of what their prompts ask for in the concept's domain and in the other
    ones. The domains are style and object; on the bundled world shape, colour and fill. Of several
    concepts each picture's own counts, and any domain of one of them is theirs. Each accuracy also
    stands by role ("UA.synonym", "IRA.other"). One that no picture has a say in is left out.
    """

    name = "unlearncanvas"
    version = 2
    per_picture = False
    INSTEAD = "set styles and objects to classifiers"
    higher = "better unlearning (UA), more retained (IRA, CRA)"
    Settings = UnlearnCanvasSettings
    settings: UnlearnCanvasSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The concept must be a class, as far as the class lists can be known yet."""
        if self.asks_the_judge():
            return super().problems(base, concept)
        try:
            return self._without_class([concept], map(names_ahead, self._sources))
        except DataError as error:
            return [f"metric {self.name!r}: {error}"]

    def look_ahead(self, erased: Sequence[str], kept: Sequence[str]) -> None:
        """The same on the worker, where the models must be had anyway."""
        if not self.asks_the_judge():
            for what in self._without_class(erased, map(names_of, self._sources)):
                raise NoClassError(what)

    def _without_class(
        self, concepts: Sequence[str], lists: Iterable[tuple[str, ...] | None]
    ) -> list[str]:
        names = list(lists)
        if None in names:
            return []
        words = frozenset(word for some in names if some for name in some for word in aliases(name))
        return [self._no_class(one, words) for one in concepts if plain(one) not in words]

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """The three accuracies."""
        if self.asks_the_judge():
            domains = _judged_domains(pictures)
        else:
            domains = [_classified_domain(pictures, source) for source in self._sources]
        gone = {p.probe.concept: None for p in pictures if p.probe.role == "erased"}
        own = {concept: self._domain(domains, concept) for concept in map(plain, gone)}
        hits: dict[str, list[float]] = {"UA": [], "IRA": [], "CRA": []}
        for index, picture in enumerate(pictures):
            role, concept = picture.probe.role, plain(picture.probe.concept)
            if role in ASKS_ERASED and concept in own:
                shown = own[concept].shown[index]
                _count(hits, "UA", role, [float(concept not in shown)])
            for domain in domains if role in KEPT else ():
                name = "IRA" if any(domain is one for one in own.values()) else "CRA"
                _count(hits, name, role, _retained(picture, domain.shown[index], domain.words))
        return Score({name: sum(some) / len(some) for name, some in hits.items() if some})

    def _domain(self, domains: Sequence[Domain], concept: str) -> Domain:
        """The kind of concept that one is."""
        for domain in domains:
            if concept in domain.words:
                return domain
        words = frozenset(word for domain in domains for word in domain.words)
        raise NoClassError(self._no_class(concept, words))

    @property
    def _sources(self) -> list[Source]:
        found = map(self.settings.source_unless_word, self.settings.MODELS)
        return [source for source in found if source is not None]

    def _no_class(self, concept: str, words: frozenset[str]) -> str:
        return (
            f"metric {self.name!r}: neither styles nor objects have a class {concept!r}"
            f"{suggest(concept, sorted(words))}"
        )


def _count(hits: dict[str, list[float]], name: str, role: Role, found: Sequence[float]) -> None:
    """By name, where the role counts in it, and by name and role."""
    if role != "synonym":  # UA is of the concept by name
        hits[name] += found
    hits.setdefault(f"{name}.{role}", []).extend(found)


def _retained(picture: Picture, shown: frozenset[str], words: frozenset[str]) -> list[float]:
    """For each of a domain's words that a picture was asked for, 1 if it shows it.

    It was asked for those in its prompt, without those inside longer ones, and its probe's concept.
    """
    asked = f"{plain(picture.probe.prompt)} ; {plain(picture.probe.concept)}"
    found = [w for w in words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", asked)]
    whole = [w for w in found if not any(w in other for other in found if other != w)]
    return [float(word in shown) for word in whole]


def _judged_domains(pictures: Sequence[Picture]) -> list[Domain]:
    """Shape, colour and fill; a picture without a shape shows none of them."""
    from workers.shapes.judge import NONE, Judge

    judge = Judge.load()
    names = judged(judge, [picture.image for picture in pictures])
    is_shape = [shape != NONE for shape in names["shape"]]
    return [
        Domain(
            frozenset(judge.classes[head]) - {NONE},
            [frozenset({word} if seen else ()) for word, seen in zip(found, is_shape, strict=True)],
        )
        for head, found in names.items()
    ]


def _classified_domain(pictures: Sequence[Picture], source: Source) -> Domain:
    """A classifier's classes, each under all its names, and the most probable of each picture."""
    model = load_classifier(source)
    of = [frozenset(aliases(name)) for name in model.names]
    best = model.probabilities([picture.image for picture in pictures]).argmax(dim=1)
    return Domain(frozenset().union(*of), [of[index] for index in best.tolist()])
