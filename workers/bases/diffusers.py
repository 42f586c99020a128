"""Any Stable Diffusion 1.x or 2.x model: a folder, a repository id or a checkpoint file."""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.data.pinned import COMMIT, REPOSITORY
from workers.interfaces.base import Base

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from workers.interfaces.pipeline import Pipeline


TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "a drawing of {}",
    "{}",
)


Dtype = Literal["float32", "float16", "bfloat16"]
PARTS = ("unet", "vae", "text_encoder")
"""The pipeline's parts that have weights."""


PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREDICTIONS = ("epsilon", "v_prediction")
TEXT_FILES = (".json", ".txt")  # a tokenizer's merges are a .txt
HASH_CHUNK_BYTES = 1 << 20


class DiffusersSettings(Settings):
    """Which model, how it is read, what it is asked for, and what should survive erasing."""

    source: str = Field(
        description="a folder in diffusers' layout, a repository id such as owner/name, or one "
        ".safetensors checkpoint file"
    )
    revision: str | None = Field(
        None, description="a repository's commit, 40 hex digits; needed for repositories only"
    )
    config: str | None = Field(
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
        path = Path(self.source).expanduser()
        if self.config is not None and not path.is_file():
            raise ValueError(f"config is for a checkpoint file, which {self.source!r} is not")
        if path.exists():
            if self.revision is not None:
                what = "file" if path.is_file() else "folder"
                raise ValueError(f"revision is for repositories but {self.source!r} is a {what}")
        elif not REPOSITORY.fullmatch(self.source):
            raise ValueError(
                f"source {self.source!r} does not exist here; it must be a folder, a .safetensors "
                "file or a repository id such as owner/name"
            )
        elif COMMIT.fullmatch(self.revision or "") is None:
            got = f"got {self.revision!r}" if self.revision else "has none"
            raise ValueError(
                f"source {self.source!r} is no folder or file here, and as a repository it needs "
                f"revision, a commit hash of 40 hex digits, but {got}; branches and tags move, "
                "and a result must name the weights that it was computed from"
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

    def concepts(self) -> None:
        """Any text is allowed."""
        return None

    def prompts(self, concept: str) -> tuple[str, ...]:
        """The settings' templates."""
        return tuple(template.replace("{}", concept) for template in self.settings.templates)

    def retained(self, concept: str) -> tuple[str, ...]:
        """The settings' concepts, without the erased one."""
        return tuple(word for word in self.settings.retained if word != concept)

    def anchor(self, concept: str) -> str:
        """The settings' own, else the first retained concept; '' if there is none."""
        return self.settings.anchor or next(iter(self.retained(concept)), "")

    def never_known(self) -> str:
        """A word that means nothing."""
        return "a zorblax"

    def fingerprint(self) -> str:
        """A repository's commit; else sha256 of the file, or of a folder's texts and weights."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        s, path = self.settings, Path(self.settings.source).expanduser()
        if not path.exists():
            return str(s.revision)
        refuse_bad_files(path, s.allow_pickle)
        if path.is_dir():
            suffixes = (*TEXT_FILES, ".safetensors", *(PICKLES if s.allow_pickle else ()))
            return _digest_of_folder(path, suffixes)
        if s.config is None:
            return _digest_of_file(path)
        config = _digest_of_folder(Path(s.config).expanduser(), TEXT_FILES)
        return hashlib.sha256(f"{_digest_of_file(path)}\n{config}".encode()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as JSON values; `revision` is the commit, or null."""
        s = self.settings
        return {"source": s.source, "revision": s.revision, "torch_dtype": s.torch_dtype}

    def load(self, device: str) -> Pipeline:
        """Read the pipeline without its safety checker."""
        s = self.settings
        return load_pipeline(
            s.source,
            s.revision,
            device,
            dtype=s.torch_dtype,
            allow_pickle=s.allow_pickle,
            config=s.config,
        )


def load_pipeline(
    source: str,
    revision: str | None,
    device: str,
    *,
    dtype: Dtype = "float32",
    allow_pickle: bool = False,
    config: str | None = None,
) -> Pipeline:
    """Read a Stable Diffusion pipeline, in evaluation mode, quiet, its scheduler as it is.

    The hub is asked for repositories, and for the configuration of a checkpoint file that comes
    without one; never with HF_HUB_OFFLINE=1.

    Raises:
        ResurgeError: nothing is there, the weights are pickles, or it is another kind of model.
    """
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # A worker's log is read later, where bars of files being read are noise.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    path = Path(source).expanduser()
    refuse_bad_files(path, allow_pickle)
    options = {
        "dtype": getattr(torch, dtype),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    try:
        if path.is_file():
            pipe = _read_file(path, config, options)
        else:
            where = path if path.is_dir() else source
            pipe = _read_layout(where, revision, allow_pickle, options)
    except ResurgeError:
        raise
    except Exception as error:  # the readers raise whatever they trip over in a broken file
        raise ResurgeError(
            f"cannot load a Stable Diffusion pipeline from {source!r}: "
            f"{_sentence(error)}{'' if path.exists() else _offline_hint()}"
        ) from error
    _refuse_other_models(pipe, source)
    pipe.set_progress_bar_config(disable=True)
    for part in (getattr(pipe, name) for name in PARTS):
        if part.dtype != options["dtype"]:
            part.to(options["dtype"])
        part.eval().requires_grad_(False)
    moved: Pipeline = pipe.to(device)
    return moved


def _read_layout(
    where: Path | str, revision: str | None, allow_pickle: bool, options: dict[str, Any]
) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    kind = StableDiffusionPipeline.load_config(where, revision=revision).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ResurgeError(_other_model(where, f"a {kind}"))
    return StableDiffusionPipeline.from_pretrained(
        where,
        revision=revision,
        # None reads safetensors where there are any, and pickles else.
        use_safetensors=None if allow_pickle else True,
        variant=_variant(where) if isinstance(where, Path) else None,
        **options,
    )


def _read_file(path: Path, config: str | None, options: dict[str, Any]) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import is_offline_mode

    folder = None if config is None else Path(config).expanduser()
    if folder is not None and not (folder / "model_index.json").is_file():
        raise ResurgeError(f"config must be a folder with a model_index.json but got {config!r}")
    is_offline = folder is not None or is_offline_mode()
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path), config=folder and str(folder), local_files_only=is_offline, **options
        )
    except Exception as error:
        if folder is not None:
            raise
        raise ResurgeError(
            f"cannot load {path}: {_sentence(error)}; a checkpoint file holds no configuration and "
            "no tokenizer: set config to a folder that does, if the hub cannot be reached"
        ) from error


def refuse_bad_files(path: Path, allow_pickle: bool) -> None:
    """See that a file or folder has weights, and in a format that may be read.

    Raises:
        ResurgeError: a part has no weights, or only pickled ones. A path that is not there is
            left to the reader.
    """
    if path.is_file():
        if path.suffix != ".safetensors" and not (allow_pickle and path.suffix in PICKLES):
            raise ResurgeError(_refusal(path))
    elif (path / "model_index.json").is_file():
        for folder in (path / part for part in PARTS):
            weights = [
                f for f in sorted(folder.glob("*")) if f.suffix in (".safetensors", *PICKLES)
            ]
            if not weights:
                raise ResurgeError(f"{folder} has no weights; a .safetensors file must be there")
            if not allow_pickle and all(f.suffix != ".safetensors" for f in weights):
                raise ResurgeError(_refusal(weights[0]))


def _refusal(file: Path) -> str:
    if file.suffix not in PICKLES:
        return f"{file} must be a .safetensors file"
    return (
        f"{file} is a pickle, which can run code when it is read; convert it to safetensors "
        "(`pipe.save_pretrained`), or set allow_pickle: true to read it with torch's weights-only "
        "loader"
    )


def _refuse_other_models(pipe: Pipeline, source: str) -> None:
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ResurgeError(
            f"the scheduler of {source!r} has prediction_type {kind!r}; "
            f"it must be one of {', '.join(PREDICTIONS)}"
        )
    channels, latent_channels = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if channels != latent_channels:
        what = f"a UNet of {channels} channels over latents of {latent_channels}"
        raise ResurgeError(_other_model(source, what))


def _other_model(source: Path | str, what: str) -> str:
    return (
        f"{str(source)!r} is {what}; it must be a text-to-image Stable Diffusion 1.x or 2.x model "
        "with one text encoder (StableDiffusionPipeline)"
    )


def _variant(folder: Path) -> str | None:
    """ "fp16" if the folder has its weights under that name only."""
    names = [file.name for file in (folder / "unet").glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def _offline_hint() -> str:
    from huggingface_hub import is_offline_mode

    return (
        " (HF_HUB_OFFLINE is set: only the local cache was searched)" if is_offline_mode() else ""
    )


def _sentence(error: Exception) -> str:
    """What a reader says, as one line without its last full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or repr(error)).rstrip(".")


def _digest_of_folder(folder: Path, suffixes: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.suffix in suffixes):
        total.update(f"{file.relative_to(folder).as_posix()}\0{_digest_of_file(file)}\n".encode())
    return total.hexdigest()


def _digest_of_file(path: Path) -> str:
    status = path.stat()
    return _sha256(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _sha256(path: Path, _modified_ns: int, size_bytes: int) -> str:
    """Read once a process, as long as time and size stay: weights are gigabytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
