"""What a fine-tuning data set is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.chosen import Chosen
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import DatasetPlugin

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Captioned pictures: `images` is uint8 of shape (n, height, width, 3).

    `sources` say where each is from ("row 7", a file's name); a set that leaves them out gets the
    pictures' numbers. `distances` are those to the erased concept, for sets that measure them.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    distances: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: Sequence[int]) -> Examples:
        """These of them, in this order."""
        return Examples(
            self.images[list(indices)],
            _take(self.captions, indices),
            _take(self.sources, indices),
            _take(self.distances, indices),
        )

    def captioned(self, caption: str | None) -> Examples:
        """With one caption for all; with their own if it is None."""
        if caption is None:
            return self
        return replace(self, captions=(caption,) * len(self))

    def named(self, name: str) -> Examples:
        """With a source each that begins with the data set's name."""
        known = self.sources or tuple(map(str, range(len(self))))
        sources = tuple(f"{name}: {source}" for source in known)
        return Examples(self.images, self.captions, sources, self.distances)


def _take(values: tuple[T, ...], indices: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[i] for i in indices) if values else ()


class Dataset(DatasetPlugin):
    """Captioned pictures for ordinary fine-tuning; the same settings always give the same ones."""

    @abstractmethod
    def examples(self, concept: str, size_px: int) -> Examples:
        """All examples as square pictures of `size_px`; `concept` is the erased one.

        Raises:
            ResurgeError: the files are missing or unreadable; every bad row is named.
        """

    def examples_of(self, concepts: Sequence[str], size_px: int) -> Examples:
        """The same where several concepts were erased, of a set that says `joint`.

        Raises:
            ResurgeError: the files are missing or unreadable; every bad row is named.
        """
        [concept] = concepts
        return self.examples(concept, size_px)

    def count(self) -> int | None:
        """How many examples there are; None if that is known only when they are read.

        Raises:
            ResurgeError: there are fewer than the settings ask for.
        """
        return getattr(self.settings, "size", None)


class ChosenDataset(Chosen):
    """A data set, as another plug-in's setting."""

    kind = "dataset"
    plugin: Dataset


def draw_subset(there: int, size: int | None, seed: int, what: str) -> list[int]:
    """`size` of the numbers below `there`, drawn by the seed; all in their order if None.

    Raises:
        ResurgeError: there are not so many, or none at all.
    """
    import numpy as np

    check_size(there, size, what)
    if size is None:
        return list(range(there))
    order: list[int] = np.random.default_rng(seed).permutation(there).tolist()
    return order[:size]


def check_size(there: int, size: int | None, what: str) -> int:
    """How many examples are taken of `what`, which has `there`.

    Raises:
        ResurgeError: there are not so many, or none at all.
    """
    if there == 0:
        raise ResurgeError(f"{what} has no rows; at least one picture is needed")
    if size is not None and size > there:
        raise ResurgeError(f"{what} has {there} pictures but size is {size}; lower size")
    return there if size is None else size
