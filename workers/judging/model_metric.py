"""Where a metric's model comes from: a folder, or a repository pinned to a commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.data.files import digest_of, place
from workers.data.pinned import Source
from workers.interfaces.metric import Metric
from workers.judging.shapes_judge import JUDGE, judge_digest, refusal

CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
RESNET_50 = "microsoft/resnet-50"
COMMITS: Mapping[str, str] = {
    # The conversion to safetensors: the main branch holds pickled weights only.
    CLIP_B32: "c237dc49a33fc61debc9276459120b7eac67e7ef",
    CLIP_L14: "32bd64288804d66eefd0ccbe215aa642df71cc41",
    RESNET_50: "34c2154c194f829b11125337b98c8f5f9965ff19",
}
"""The commits of the models that metrics use by default."""
REVISION = "a repository's commit, 40 hex digits; needed for repositories, but for the default one"


class SourceSettings(Settings):
    """Settings that name models.

    `MODELS` says which setting has the commit of the model that another names. A known model's
    commit is filled in, so that the record has it. `WORDS` are values that name no model.
    """

    MODELS: ClassVar[Mapping[str, str]] = {"model": "revision"}
    WORDS: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _are_pinned(self) -> SourceSettings:
        for model, revision in self.MODELS.items():
            name = getattr(self, model)
            if getattr(self, revision) is None and name in COMMITS and not place(name).exists():
                # Before the values are seen: nobody has this object yet, frozen as it will be. Not
                # in a validator of the raw values, after which JSON's lists would be no tuples.
                object.__setattr__(self, revision, COMMITS[name])
            source, commit = self.source_unless_word(model), getattr(self, revision)
            fault = source and source.fault()
            if source is None or fault == "revision of what is here":
                if commit:
                    raise ValueError(f"{revision} is for repositories but {model} is {name!r}")
            elif fault == "no repository":
                words = "".join(f"{word!r}, " for word in sorted(self.WORDS))
                raise ValueError(
                    f"{model} must be {words}a folder that exists or a repository id such as "
                    f"owner/name but got {name!r}"
                )
            elif fault == "no commit":
                raise ValueError(
                    f"{model} {name!r} is no folder here, and as a repository it needs {revision}, "
                    f"a commit hash of 40 hex digits, but {source.got}; a branch or a tag moves, "
                    "and a result must name the weights that it was computed from"
                )
        return self

    def source(self, setting: str = "model") -> Source:
        """The model that a setting names."""
        return Source(getattr(self, setting), getattr(self, self.MODELS[setting]))

    def source_unless_word(self, setting: str) -> Source | None:
        """The model that a setting names; None if it says one of `WORDS`, or nothing."""
        return None if getattr(self, setting) in (None, *self.WORDS) else self.source(setting)


class SourceMetric(Metric):
    """A metric that is as good as the models and weight files that its settings name."""

    settings: SourceSettings
    FILES: ClassVar[tuple[str, ...]] = ()
    """Settings that name a .safetensors file."""
    INSTEAD: ClassVar[str] = ""
    """What to do where the bundled world's judge is asked about another base's pictures."""

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The judge is for the bundled world; weight files must be there."""
        found = refusal(self.name, base, self.INSTEAD) if self.asks_the_judge() else []
        for setting in self.files():
            try:
                self.file(setting)
            except ResurgeError as error:
                found.append(str(error))
        return found

    def fingerprint(self) -> str:
        """The models' commits or the sha256 of their folders, and that of weight files."""
        return "\n".join(self.digests())

    def judged_by(self) -> str:
        """The models, each at its commit."""
        sources = map(self.settings.source_unless_word, self.settings.MODELS)
        return ", ".join(source.title for source in sources if source is not None)

    def digests(self) -> list[str]:
        """One of each model and file that the values depend on."""
        sources = map(self.settings.source_unless_word, self.settings.MODELS)
        found = [source.digest() for source in sources if source is not None]
        found += [digest_of(self.file(setting)) for setting in self.files()]
        return [*found, judge_digest()] if self.asks_the_judge() else found

    def asks_the_judge(self) -> bool:
        """Whether a setting names the bundled world's judge."""
        return any(map(self._is_judge, (*self.settings.MODELS, *self.FILES)))

    def _is_judge(self, setting: str) -> bool:
        return bool(getattr(self.settings, setting) == JUDGE)

    def files(self) -> tuple[str, ...]:
        """The settings that do name a file."""
        return tuple(name for name in self.FILES if not self._is_judge(name))

    def file(self, setting: str) -> Path:
        """The weight file that a setting names.

        Raises:
            ResurgeError: there is none, or it is of another format.
        """
        path = place(getattr(self.settings, setting))
        if not path.is_file() or path.suffix != ".safetensors":
            there = "" if path.exists() else ", which does not exist"
            raise ResurgeError(
                f"metric {self.name!r}: {setting} must be a .safetensors file but got "
                f"{str(path)!r}{there}; see docs/metrics.md for what it holds"
            )
        return path
