"""Any Stable Diffusion 1.x or 2.x model: a folder, a repository id or a checkpoint file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from orchestrator.core.settings import Settings
from workers.data.files import PlaceText, digest_of, digest_of_file, digest_of_files, place
from workers.data.pinned import Source
from workers.data.pipeline_files import (
    PICKLES,
    config_faults,
    loaded_files,
    refuse_bad_model,
    refuse_bad_repository,
    refuse_other_folders,
    weight_shapes,
)
from workers.data.pipeline_loading import Dtype, load_pipeline
from workers.interfaces.base import Base, WeightFiles
from workers.interfaces.fit import refuse
from workers.interfaces.reading import as_clip_reads, cut_by_clip

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "a drawing of {}",
    "{}",
)
PROMPT_TOKENS = 77
"""What the text encoders of Stable Diffusion 1.x and 2.x read."""
TEXT_FILES = (".json", ".txt")  # a tokenizer's merges are a .txt


class DiffusersSettings(Settings):
    """Which model, how it is read, what it is asked for, and what should survive erasing."""

    source: PlaceText = Field(
        description="a folder in diffusers' layout, a repository id such as owner/name, or one "
        ".safetensors checkpoint file"
    )
    revision: str | None = Field(
        None, description="a repository's commit, 40 hex digits; needed for repositories only"
    )
    config: PlaceText | None = Field(
        None,
        description="for a checkpoint file: a folder with the pipeline's configuration and "
        "tokenizer in diffusers' layout; null: fetched from the hub",
    )
    retained: tuple[str, ...] = Field((), description="concepts that should survive erasing")
    anchor: str = Field(
        "",
        description="what methods that need another concept train towards; "
        "'': the first retained concept",
    )
    templates: tuple[str, ...] = Field(
        TEMPLATES, description="the prompts, with {} where the concept stands"
    )
    variant: str | None = Field(
        None,
        min_length=1,
        description="which of a folder's or repository's weights are read where there are several, "
        "such as fp16 or non_ema; a part without it is read as it is; null: those without a "
        "variant, or the only ones",
    )
    torch_dtype: Dtype = Field(
        "float32",
        description="the weights' type in memory; training needs float32 (see finetune.precision "
        "for bf16), the others are for sampling and closed-form edits on a GPU",
    )
    allow_pickle: bool = Field(
        False,
        description="also read .bin and .ckpt weights, by torch's weights-only loader, which runs "
        "no code from the file",
    )

    @field_validator("retained", "templates")
    @classmethod
    def _are_told_apart(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        before: dict[str, str] = {}
        for text in texts:
            if (other := before.setdefault(as_clip_reads(text), text)) is not text:
                raise ValueError(f"{text!r} is the same to the model as {other!r} before it")
        return texts

    @field_validator("templates")
    @classmethod
    def _each_has_one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            got = ", ".join(map(repr, wrong)) or "no template"
            raise ValueError(f"every template must contain {{}} exactly once but got {got}")
        return templates

    @model_validator(mode="after")
    def _fits_the_kind_of_source(self) -> DiffusersSettings:
        source = Source(self.source, self.revision)
        path = source.path
        if self.config is not None and not path.is_file():
            raise ValueError(f"config is for a checkpoint file, which {self.source!r} is not")
        if self.variant is not None and path.is_file():
            raise ValueError(f"variant is for folders and repositories; {self.source!r} is a file")
        match source.fault(or_file=True):
            case "revision of what is here":
                what = "file" if path.is_file() else "folder"
                raise ValueError(f"revision is for repositories but {self.source!r} is a {what}")
            case "no repository":
                raise ValueError(
                    f"source {self.source!r} does not exist here; it must be a folder, a "
                    ".safetensors file or a repository id such as owner/name"
                )
            case "no commit":
                raise ValueError(
                    f"source {self.source!r} is no folder or file here, and as a repository it "
                    f"needs revision, a commit hash of 40 hex digits, but {source.got}; branches "
                    "and tags move, and a result must name the weights that it was computed from"
                )
        return self


class Diffusers(Base):
    """A Stable Diffusion 1.x or 2.x model: a folder, a repository or a checkpoint file.

    Weights are read from safetensors, unless `allow_pickle` says otherwise. Any text is a concept.
    The concept that the model never knew is a nonce word.
    """

    name = "diffusers"
    version = 1
    Settings = DiffusersSettings
    settings: DiffusersSettings

    def concepts(self) -> None:
        """Any text is allowed."""
        return None

    def prompts(self, concept: str) -> tuple[str, ...]:
        """The settings' templates."""
        return tuple(template.replace("{}", concept) for template in self.settings.templates)

    def retained(self, concept: str) -> tuple[str, ...]:
        """The settings' concepts, without the erased one."""
        read = as_clip_reads(concept)
        return tuple(word for word in self.settings.retained if as_clip_reads(word) != read)

    def anchor(self, concept: str) -> str:
        """The settings' own, else the first retained concept; '' if there is none."""
        return self.settings.anchor or next(iter(self.retained(concept)), "")

    def never_known(self) -> str:
        """A word that means nothing."""
        return "a zorblax"

    def as_read(self, text: str) -> str:
        """As CLIP's tokenizer does."""
        return as_clip_reads(text)

    def unread(self, prompt: str) -> str:
        """By the least number of tokens that it can have."""
        return cut_by_clip(prompt, PROMPT_TOKENS)

    def fingerprint(self) -> str:
        """A repository's commit; else sha256 of the file, or of what is read of a folder.

        Raises:
            ResurgeError: it can be seen from the files that the model cannot be used.
        """
        s, path = self.settings, self._source.path
        if not path.exists():
            refuse_bad_repository(self._source)
            return str(s.revision)
        refuse_bad_model(path, s.variant, s.allow_pickle)
        if path.is_dir():
            refuse(config_faults(path), s.source)
            return digest_of_files(path, loaded_files(path, s.variant, s.allow_pickle))
        if s.config is None:
            return digest_of_file(path)
        folder = place(s.config)
        refuse_other_folders(folder)
        refuse(config_faults(folder), s.config)
        config = digest_of(folder, TEXT_FILES)
        return hashlib.sha256(f"{digest_of_file(path)}\n{config}".encode()).hexdigest()

    def shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """Of a folder with its weights in safetensors."""
        path = self._source.path
        return weight_shapes(path, self.settings.variant) if path.is_dir() else None

    @property
    def _source(self) -> Source:
        return Source(self.settings.source, self.settings.revision)

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as JSON values; `revision` is the commit, or null."""
        s = self.settings
        return {"source": s.source, "revision": s.revision, "torch_dtype": s.torch_dtype}

    def weights(self) -> WeightFiles:
        """The local files, or the repository's commit."""
        s, path = self.settings, self._source.path
        revision = None if path.exists() else s.revision
        return WeightFiles(_weights(path, s), revision, s.allow_pickle)

    def load(self, device: str) -> Pipeline:
        """Read the pipeline without its safety checker."""
        s = self.settings
        return load_pipeline(
            self._source,
            device,
            dtype=s.torch_dtype,
            variant=s.variant,
            allow_pickle=s.allow_pickle,
            config=s.config,
        )


def _weights(path: Path, settings: DiffusersSettings) -> tuple[Path, ...]:
    """The files here that weights are read from."""
    if not path.is_dir():
        return (path,) if path.is_file() else ()
    files = loaded_files(path, settings.variant, settings.allow_pickle)
    return tuple(file for file in files if file.suffix in (".safetensors", *PICKLES))
