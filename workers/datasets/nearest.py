"""A part of any other data set, by its distance from the erased concept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText, digest_of, digest_of_file
from workers.data.pinned import Source
from workers.interfaces.dataset import ChosenDataset, Dataset, Examples, draw_subset

Bin = Literal["near", "middle", "far"]
SHAPES = Path(__file__).parent.parent / "shapes" / "weights"
FILES = {
    "captions": ("pipeline/text_encoder/model.safetensors", "pipeline/tokenizer/vocab.json"),
    "pictures": ("judge.safetensors",),
}
"""What the bundled embeddings are made with."""
CONCEPT_PICTURES = 64
"""Pictures of the concept whose mean embedding is the point to measure from."""
CONCEPT_SEED = 1_000_003
JUDGE_SIDE_PX = 32


class NearestSettings(Settings):
    """Which part, of which data set, in which embedding."""

    of: ChosenDataset = Field(description="the data set to choose from")
    by: Literal["captions", "pictures", "clip"] = Field(
        "pictures",
        description="what is embedded: captions or pictures by the bundled shapes model's text "
        "encoder or judge, or pictures by CLIP, against the concept's name",
    )
    bin: Bin | None = Field(None, description="the near, the middle or the far part")
    k: int | None = Field(None, ge=1, description="the k nearest, instead of a bin")
    bins: tuple[float, float] = Field(
        (1 / 3, 2 / 3), description="the quantiles that part near, middle and far"
    )
    size: int | None = Field(
        None, ge=1, description="how many of the bin, chosen by the seed; null: all, nearest first"
    )
    seed: int = Field(0, ge=0, description="seed of the choice")
    clip: PlaceText | None = Field(None, description="CLIP's folder or repository, for by: clip")
    clip_revision: str | None = Field(
        None, description="the repository's commit, 40 hex digits; not for a folder"
    )

    @model_validator(mode="after")
    def _one_part(self) -> NearestSettings:
        if (self.bin is None) == (self.k is None):
            raise ValueError("needs either bin (near, middle or far) or k, the number of nearest")
        if self.k is not None and self.size is not None:
            raise ValueError("size is for a bin; k is the number of examples already")
        low, high = self.bins
        if not 0 <= low <= high <= 1:
            raise ValueError(f"bins must be two quantiles 0 <= a <= b <= 1 but got {[low, high]}")
        return self

    @model_validator(mode="after")
    def _clip_is_pinned(self) -> NearestSettings:
        if self.by != "clip":
            if self.clip is not None or self.clip_revision is not None:
                raise ValueError(f"clip and clip_revision are for by: clip but by is {self.by}")
            return self
        if self.clip is None:
            raise ValueError("by: clip needs clip, a folder or repository with a CLIP model")
        match Source(self.clip, self.clip_revision).fault():
            case "revision of what is here":
                raise ValueError(f"clip_revision is for repositories but {self.clip!r} is a folder")
            case "no repository":
                raise ValueError(
                    f"clip must be owner/name or a folder that exists, not {self.clip!r}"
                )
            case "no commit":
                raise ValueError(
                    f"clip {self.clip!r} needs clip_revision, a commit hash of 40 hex digits, "
                    f"but got {self.clip_revision!r}"
                )
        return self


class Nearest(Dataset):
    """The near, middle or far part of another data set, by distance from the erased concept.

    The distance is 1 − the cosine of two embeddings. The examples are put in its order (equal ones
    stay as they were) and parted at quantiles; each keeps its distance.
    """

    name = "nearest"
    version = 1
    Settings = NearestSettings
    settings: NearestSettings

    @property
    def inner(self) -> Dataset:
        """The data set to choose from."""
        return self.settings.of.plugin

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """Those of the inner set; the embedding must be one for this base, the part not empty."""
        found = self.inner.problems(base, concept)
        if self.settings.by != "clip" and base.name != "shapes":
            found.append(
                f"dataset 'nearest' by {self.settings.by} needs base 'shapes' but the base is "
                f"{base.name!r}; use by: clip"
            )
        if not found:
            try:
                self.count()
            except ResurgeError as error:
                return [str(error)]
        return found

    def count(self) -> int | None:
        """How many examples are taken, where the inner set's number is known."""
        there = self.inner.count()
        return None if there is None else len(self._places(there))

    def fingerprint(self) -> str:
        """What the inner set is, and what the embedding is made with."""
        if self._clip is not None:
            embedding = self._clip.revision or digest_of(self._clip.path)
        else:
            embedding = sha256([digest_of_file(SHAPES / file) for file in FILES[self.settings.by]])
        return sha256([self.settings.of.identity, embedding])

    @property
    def _clip(self) -> Source | None:
        """The CLIP model; None if the embedding is the bundled world's."""
        s = self.settings
        return None if s.clip is None else Source(s.clip, s.clip_revision)

    def examples(self, concept: str, size_px: int) -> Examples:
        """Embed all of the inner set, order it, and take the part."""
        import numpy as np

        from workers.data import distance

        there = self.inner.examples(concept, size_px).named(self.inner.name)
        if self._clip is not None:
            distances = distance.by_clip(there, concept, self._clip)
        elif self.settings.by == "captions":
            distances = distance.by_captions(there, concept)
        else:
            own = ChosenDataset.read({"erased": {"size": CONCEPT_PICTURES, "seed": CONCEPT_SEED}})
            pictures = own.plugin.examples(concept, JUDGE_SIDE_PX)
            distances = distance.by_pictures(there, pictures)
        measured = Examples(there.images, there.captions, there.sources, distances)
        order = np.argsort(np.array(distances), kind="stable")
        return measured.take([int(order[place]) for place in self._places(len(there))])

    def _places(self, there: int) -> list[int]:
        """Which places in the order of distances are taken, of a set of so many.

        Raises:
            ResurgeError: the part has fewer examples than are asked for, or none.
        """
        s = self.settings
        what = f"dataset 'nearest' of {self.inner.name!r}"
        if s.k is not None:
            if s.k > there:
                raise ResurgeError(f"{what} has {there} pictures but k is {s.k}; lower k")
            return list(range(s.k))
        low, high = (round(quantile * there) for quantile in s.bins)
        assert s.bin is not None  # the settings have the one or the other
        first, last = {"near": (0, low), "middle": (low, high), "far": (high, there)}[s.bin]
        if first == last:
            raise ResurgeError(
                f"{what} has nothing in its bin {s.bin!r}: {there} pictures parted at {low} and "
                f"{high}; change bins, or take a larger set"
            )
        chosen = draw_subset(last - first, s.size, s.seed, f"{what}, bin {s.bin!r},")
        return [first + place for place in sorted(chosen)]
