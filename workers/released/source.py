"""Where weights of others are: a folder, a file, or a repository at a commit; safetensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import Field, model_validator

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText, digest_of_file, digest_of_files
from workers.data.hub_access import asking_the_hub, out_of_reach
from workers.data.pinned import Source
from workers.data.pipeline_files import INDEX, LORA, PICKLES, header_of, json_object, part_files

PARTS = ("unet", "text_encoder")
"""The parts whose weights are read; an autoencoder and a tokenizer stay the base's."""
CONFIGS = ("adapter_config.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
           "unet/config.json")  # fmt: skip


class SourceSettings(Settings):
    """Which weights."""

    source: PlaceText = Field(
        description="a folder in diffusers' layout or of one part (unet, text_encoder), a "
        ".safetensors file, or a repository id such as owner/name"
    )
    revision: str | None = Field(
        None, description="a repository's commit, 40 hex digits; needed for repositories only"
    )
    file: str | None = Field(
        None, min_length=1, description="which file of a repository; null: those of its layout"
    )
    variant: str | None = Field(
        None,
        min_length=1,
        description="which of a folder's weights are read where there are several, such as fp16",
    )

    @model_validator(mode="after")
    def _names_the_same_bytes_for_ever(self) -> SourceSettings:
        refuse_source("source", Source(self.source, self.revision))
        if self.file is None:
            return self
        inside = PurePosixPath(self.file)
        if Source(self.source).path.exists():
            raise ValueError("file is for repositories; name the file itself as source")
        if inside.is_absolute() or ".." in inside.parts or "\\" in self.file:
            raise ValueError(f"file must be a path inside the repository but got {self.file!r}")
        return self


class BasedSettings(SourceSettings):
    """Which weights, and what they were made from."""

    base: PlaceText | None = Field(
        None,
        description="what the weights were made from, where that is not the sweep's base: a "
        "folder, a file or a repository; their difference to it is added",
    )
    base_revision: str | None = Field(None, description="that repository's commit, 40 hex digits")

    @model_validator(mode="after")
    def _base_names_the_same_bytes_for_ever(self) -> BasedSettings:
        if self.base is not None:
            refuse_source("base", Source(self.base, self.base_revision))
        elif self.base_revision is not None:
            raise ValueError("base_revision is a repository's commit; name the repository as base")
        return self


def refuse_source(setting: str, source: Source) -> None:
    """See that a source names the same bytes for ever.

    Raises:
        ValueError: it is not here, or a repository without a commit.
    """
    match source.fault(or_file=True):
        case "revision of what is here":
            raise ValueError(f"revision is for repositories but {source.name!r} is here")
        case "no repository":
            raise ValueError(
                f"{setting} {source.name!r} does not exist here; it must be a folder, a "
                ".safetensors file or a repository id such as owner/name"
            )
        case "no commit":
            raise ValueError(
                f"{setting} {source.name!r} is not here, and as a repository it needs a revision, "
                f"a commit hash of 40 hex digits, but {source.got}; branches and tags move, and a "
                "result must name the weights that it was computed from"
            )


@dataclass(frozen=True)
class Released:
    """The files that are read of a source, all of them here.

    `parts` are those of a folder's parts, which must be whole; `files` stand alone and may hold
    some weights only. `configs` are what is compared with the model at hand.
    """

    root: Path
    parts: tuple[tuple[str, Path], ...] = ()
    files: tuple[Path, ...] = ()
    configs: tuple[Path, ...] = ()

    @property
    def lora(self) -> Path | None:
        """The LoRA, if it is one."""
        if len(self.files) == 1 and any(map(LORA.search, header_of(self.files[0]).shapes)):
            return self.files[0]
        return None

    def digest(self) -> str:
        """sha256 of the files' names and contents."""
        if self.root.is_file():
            beside = "".join(digest_of_file(config) for config in self.configs)
            return digest_of_file(self.root) + beside if beside else digest_of_file(self.root)
        read = {path for _, path in self.parts} | set(self.files) | set(self.configs)
        return digest_of_files(self.root, sorted(read))


def fingerprint_of(settings: SourceSettings) -> str:
    """A repository's commit, else sha256 of what is read; the same of the base that is named.

    Raises:
        ResurgeError: what is there cannot be used.
    """
    found = [_digest(Source(settings.source, settings.revision), settings.variant)]
    if isinstance(settings, BasedSettings) and settings.base is not None:
        found.append(_digest(Source(settings.base, settings.base_revision), None))
    return " ".join(found)


def _digest(source: Source, variant: str | None) -> str:
    here = source.path
    return find_released(here, variant).digest() if here.exists() else source.digest()


def read_released(settings: SourceSettings) -> Released:
    """The files of the settings' source; a repository is fetched.

    Raises:
        ResurgeError: it cannot be had, or cannot be used.
    """
    source = Source(settings.source, settings.revision)
    return find_released(local(source, settings.file, settings.variant), settings.variant)


def local(source: Source, file: str | None = None, variant: str | None = None) -> Path:
    """The folder or file here; of a repository what is read of it is fetched.

    Raises:
        ResurgeError: the hub cannot be reached, or what is there cannot be used.
    """
    if source.path.exists():
        return source.path
    from huggingface_hub import HfApi, hf_hub_download, is_offline_mode

    if file is not None and file.endswith(PICKLES):
        raise pickled(f"{source.name}/{file}")
    with asking_the_hub(source):
        if file is not None:
            return Path(hf_hub_download(source.name, file, revision=source.revision))
        if is_offline_mode():
            return _cached(source)
        names = HfApi().list_repo_files(source.name, revision=source.revision)
        wanted = _wanted(source, names, variant)
        paths = [Path(hf_hub_download(source.name, n, revision=source.revision)) for n in wanted]
        return paths[-1].parents[wanted[-1].count("/")]


def _cached(source: Source) -> Path:
    """The cache's folder of a repository, if it can be told that all of it is there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = repo_folder_name(repo_id=source.name, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE, repository, "snapshots", str(source.revision))
    here = [part for part in PARTS if (folder / part).is_dir()]
    index = folder / INDEX
    if index.is_file():
        is_whole = here == [part for part in PARTS if part in json_object(index)]
    else:
        is_whole = not here and (folder / "config.json").is_file()
    if not is_whole:
        raise out_of_reach(source)
    return folder


def _wanted(source: Source, names: list[str], variant: str | None) -> list[str]:
    """Of a repository's files those that `find_released` reads."""
    found = [name for name in (INDEX, *CONFIGS) if name in names]
    in_parts = [n for n in names if n.count("/") == 1 and n.partition("/")[0] in PARTS]
    for part in PARTS:
        own = [n.partition("/")[2] for n in in_parts if n.startswith(f"{part}/")]
        if own:
            found += [f"{part}/{name}" for name in part_files(part, own, variant, False).files]
    if in_parts:
        return found
    top = [n for n in names if "/" not in n and n.endswith(".safetensors")]
    if len(top) != 1 and "config.json" not in names:
        raise ResurgeError(
            f"{source.name} has no unet/ and no text_encoder/ but {len(top)} .safetensors files; "
            "name one with `file`"
        )
    return [*found, *top, *(["config.json"] if "config.json" in names else [])]


def find_released(path: Path, variant: str | None = None) -> Released:
    """What is read of a folder or file.

    Raises:
        ResurgeError: there are no weights, pickles only, or files to choose from.
    """
    if path.is_file():
        _refuse_others(path)
        beside = path.parent / "adapter_config.json"  # peft's, which says LoRA's alpha
        return Released(path, files=(path,), configs=(beside,) if beside.is_file() else ())
    configs = tuple(path / name for name in CONFIGS if (path / name).is_file())
    parts = tuple(
        (part, path / part / name)
        for part in PARTS
        if (path / part).is_dir()
        for name in part_files(part, _names(path / part), variant, False).files
    )
    if parts:
        return Released(path, parts=parts, configs=configs)
    if (path / "config.json").is_file():
        names = part_files(str(path), _names(path), variant, False).files
        kind = "unet" if _is_unet(path / names[0]) else "text_encoder"
        files = tuple((kind, path / name) for name in names)
        return Released(path, parts=files, configs=(path / "config.json",))
    alone = [path / name for name in _names(path) if name.endswith(".safetensors")]
    if len(alone) != 1:
        if not alone and (pickles := [n for n in _names(path) if n.endswith(PICKLES)]):
            raise pickled(str(path / pickles[0]))
        many = f"has {len(alone)} .safetensors files; name one of them" if alone else "has none"
        raise ResurgeError(
            f"{path} must hold weights in diffusers' layout (unet/, text_encoder/), those of one "
            f"part, or one .safetensors file, but {many}"
        )
    return Released(path, files=(alone[0],), configs=configs)


def pickled(file: str) -> ResurgeError:
    """What to say of a file that can run code."""
    return ResurgeError(
        f"{file} is a pickle, which can run code when it is read; weights of others are read from "
        ".safetensors only: convert it where you trust it (safetensors.torch.save_file of "
        "torch.load(FILE, weights_only=True))"
    )


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


def _is_unet(path: Path) -> bool:
    return any(name.startswith("down_blocks.") for name in header_of(path).shapes)


def _refuse_others(path: Path) -> None:
    if path.name.endswith(PICKLES):
        raise pickled(str(path))
    if path.suffix != ".safetensors":
        raise ResurgeError(f"{path} must be a .safetensors file or a folder")
