"""Image classifiers of transformers, and which of their classes a concept is."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import DataError, ResurgeError
from workers.data.hub_access import config_ahead, config_of
from workers.data.loading import load_model
from workers.data.pinned import Source
from workers.interfaces.metric import Picture
from workers.runtime.kept import kept

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PER_PASS = 64
MOST_TOLD, MOST_NEAR = 5, 3
"""Of how many concepts without a class the near names are told, and how many of each."""
Labels = Mapping[str, Sequence[str]]
"""Names of a model's classes by the concept that they show."""


class NoClassError(ResurgeError):
    """A concept is no class of the model that is to judge its pictures."""


@dataclass(frozen=True)
class ImageClassifier:
    """A classifier with what prepares its inputs and the names of its classes."""

    model: Any
    processor: Any
    names: tuple[str, ...]

    def probabilities(self, images: Sequence[np.ndarray]) -> Tensor:
        """(n, classes) of pictures, fp32 on the CPU."""
        import torch

        from workers.judging.clip import prepare
        from workers.runtime.finite import check_tensors
        from workers.runtime.parts import passes

        found = [torch.empty(0, len(self.names))]
        with torch.inference_mode():
            for some in passes(images, PER_PASS):
                pixels = prepare(self.processor, some)
                logits = self.model(pixels.to(self.model.device)).logits
                found.append(logits.float().softmax(dim=1).cpu())
        sure = torch.cat(found)
        check_tensors({"a probability": sure}, "the classifier", "its weights are bad")
        return sure


@kept(2)
def load_classifier(source: Source) -> ImageClassifier:
    """The model, its processor and its classes."""
    from transformers import AutoModelForImageClassification

    from workers.judging.clip import load_processor

    model = load_model(AutoModelForImageClassification, source)
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    return ImageClassifier(model, load_processor(source), names)


def names_ahead(source: Source) -> tuple[str, ...] | None:
    """A model's class names, read without the model; None if they cannot be known yet.

    Raises:
        DataError: its config.json is damaged.
    """
    return _names(source, config_ahead(source))


def names_of(source: Source) -> tuple[str, ...] | None:
    """The same where the model's configuration can be fetched like the model itself."""
    return _names(source, config_of(source))


def _names(source: Source, config: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    names = (config or {}).get("id2label")
    if not names:
        return None
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(
            f"id2label in the config.json of {source.name} must name a class for each number"
        ) from error


def refusal(metric: str, source: Source, concepts: Sequence[str], labels: Labels) -> list[str]:
    """What a metric says of concepts that are no class of its model, if that can be known yet."""
    try:
        names = names_ahead(source)
    except DataError as error:
        return [f"metric {metric!r}: {error}"]
    missing = names and without_class(names, concepts, labels)
    return [f"metric {metric!r}: {missing}"] if missing else []


def refuse_unknown(metric: str, source: Source, concepts: Sequence[str], labels: Labels) -> None:
    """The same where the model's configuration can be fetched like the model itself.

    A hub that cannot be reached is left to those who load the model.

    Raises:
        NoClassError: a concept is no class.
        DataError: its config.json is damaged.
    """
    names = names_of(source)
    missing = names and without_class(names, concepts, labels)
    if missing:
        raise NoClassError(f"metric {metric!r}: {missing}")


def class_ids(names: Sequence[str], concept: str, labels: Labels) -> frozenset[int]:
    """The classes that show a concept: those that `labels` lists, else those of its name."""
    wanted = {plain(word) for word in labels.get(concept, (concept,))}
    return frozenset(i for i, name in enumerate(names) if wanted & aliases(name))


def ids_of(
    pictures: Sequence[Picture], names: Sequence[str], labels: Labels
) -> list[frozenset[int]]:
    """Each picture's classes; none for a concept that nobody knows.

    Raises:
        NoClassError: a concept that is erased or retained is no class.
    """
    known = {p.probe.concept: None for p in pictures if p.probe.role != "never_known"}
    if missing := without_class(names, list(known), labels):
        raise NoClassError(missing)
    return [class_ids(names, picture.probe.concept, labels) for picture in pictures]


def aliases(name: str) -> set[str]:
    """A class's whole name, and each of the names that commas separate ("tench, Tinca tinca")."""
    return {plain(name), *(plain(part) for part in name.split(","))}


def plain(name: str) -> str:
    """A name as it is compared: lower case, spaces for underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def _near(concept: str, names: Collection[str]) -> str:
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(concept.lower(), lower, n=MOST_NEAR)
    return f" (near: {', '.join(lower[name] for name in near)})" if near else ""


def without_class(names: Sequence[str], concepts: Sequence[str], labels: Labels) -> str:
    """What to say of concepts that are no class of a model; '' if all are."""
    missing = [concept for concept in concepts if not class_ids(names, concept, labels)]
    if not missing:
        return ""
    parts = {part.strip().replace("_", " ") for name in names for part in name.split(",")}
    told = [f"{concept!r}{_near(concept, parts)}" for concept in missing[:MOST_TOLD]]
    told += map(repr, missing[MOST_TOLD:])
    return (
        f"the model has no class for {', '.join(told)}; name the classes that "
        "show it in labels, such as labels: {cat: [tabby, Siamese cat]}"
    )
