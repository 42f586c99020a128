"""Stable Diffusion pipelines as files: which are read, and whether they are of such a model.

Planning asks this, so only names, JSON and the headers of weights are looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.core.errors import ResurgeError
from workers.data.files import dead_links
from workers.data.pinned import Source
from workers.interfaces.fit import (
    Config,
    between_faults,
    refuse,
    scheduler_faults,
    unet_faults,
    vae_faults,
)
from workers.interfaces.pipeline import PARTS

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
INDEX = "model_index.json"
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
"""Of the parts that have weights; others with such names compute something else."""
CONFIGS = {part: "config.json" for part in PARTS} | {"scheduler": "scheduler_config.json"}
TEXTS = (".json", ".txt", ".model")  # a tokenizer's merges are a .txt
LORA = re.compile(r"(^|[._])lora_(A|B|down|up|unet|te)|\.lora[._]|hada_w|lokr_")
OF_OTHERS = {
    "conditioner.embedders.": "an SDXL",
    "model.diffusion_model.joint_blocks.": "an SD 3",
    "joint_blocks.": "an SD 3",
    "model.diffusion_model.double_blocks.": "a FLUX",
    "double_blocks.": "a FLUX",
}
"""What tells other families' checkpoint files, by how names of tensors begin."""
NEEDED = {
    "model.diffusion_model.": "UNet",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.": "text encoder",
}
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>[\w-]+?))?"
    r"(-\d{5}-of-\d{5})?(?P<suffix>\.safetensors|\.bin)"
)
HUB_TIMEOUT_S = 3.0
_MAX_HEADER_BYTES = 100_000_000  # what the safetensors reader itself allows


@dataclass(frozen=True)
class PartFiles:
    """The weights that are read of a part: in a variant or none, in one file or in shards."""

    variant: str | None
    files: tuple[str, ...]

    @property
    def is_pickled(self) -> bool:
        return not self.files[0].endswith(".safetensors")


def part_files(
    part: str, names: Iterable[str], variant: str | None, allow_pickle: bool
) -> PartFiles:
    """Which of a part's files `names` are read.

    The variant asked for where the part has it, else the files without one, else the only variant
    that is there.

    Raises:
        ResurgeError: there are no weights, only pickles, or variants to choose from.
    """
    found: dict[tuple[bool, str | None], list[str]] = {}
    for name in sorted(names):
        if match := _WEIGHTS.fullmatch(name):
            key = (match["suffix"] != ".safetensors", match["variant"])
            found.setdefault(key, []).append(name)
    pickles = [name for (is_pickle, _), files in found.items() if is_pickle for name in files]
    usable = {key: files for key, files in found.items() if allow_pickle or not key[0]}
    if not usable:
        if pickles:
            raise ResurgeError(_refusal(f"{part}/{pickles[0]}"))
        raise ResurgeError(f"{part} has no weights; a .safetensors file must be there")
    variants = {key[1] for key in usable}
    if variant not in variants:
        variant = None
    if variant not in variants:
        if len(variants) > 1:
            there = ", ".join(sorted(filter(None, variants)))
            raise ResurgeError(f"{part} has its weights as {there} only; set variant to one")
        (variant,) = variants
    files = usable.get((False, variant)) or usable[(True, variant)]
    return PartFiles(variant, tuple(files))


def files_of(names: Iterable[str], variant: str | None, allow_pickle: bool) -> dict[str, PartFiles]:
    """The same of all parts, of a model's files `names` ("unet/config.json").

    Raises:
        ResurgeError: as `part_files`; or no part has the variant.
    """
    inside: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        part, _, rest = name.partition("/")
        if part in inside:
            inside[part].append(rest)
    weights = [_WEIGHTS.fullmatch(file) for files in inside.values() for file in files]
    variants = {match["variant"] for match in weights if match is not None}
    if variant is not None and variant not in variants:
        others = ", ".join(sorted(filter(None, variants))) or "none but those without a variant"
        raise ResurgeError(f"no part has weights of variant {variant!r}; there are {others}")
    return {part: part_files(part, inside[part], variant, allow_pickle) for part in PARTS}


def names_in(folder: Path) -> list[str]:
    """A model folder's files, "unet/config.json"; links are followed.

    Raises:
        ResurgeError: a link leads to no file.
    """
    rooms = [folder, *(inner for inner in folder.iterdir() if inner.is_dir())]
    paths = [path for room in rooms for path in room.iterdir()]
    if dead := [path for path in paths if path.is_symlink() and not path.exists()]:
        raise dead_links(folder, dead)
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def loaded_files(folder: Path, variant: str | None, allow_pickle: bool) -> list[Path]:
    """Every file of a folder that loading reads: configurations, tokenizer and chosen weights."""
    names = names_in(folder)
    chosen = files_of(names, variant, allow_pickle)
    weights = {f"{part}/{name}" for part, files in chosen.items() for name in files.files}
    rooms = ("tokenizer", *CONFIGS)
    texts = {
        name
        for name in names
        if name == INDEX or (name.partition("/")[0] in rooms and name.endswith(TEXTS))
    }
    return [folder / name for name in sorted(weights | texts)]


def refuse_bad_model(path: Path, variant: str | None = None, allow_pickle: bool = False) -> None:
    """See that a file or folder is a model that can be used, without loading it.

    Raises:
        ResurgeError: it is another kind of model, a LoRA, incomplete, or may not be read. A path
            that is not there is left to the reader.
    """
    if path.is_file():
        if path.suffix != ".safetensors" and not (allow_pickle and path.suffix in PICKLES):
            raise ResurgeError(_refusal(str(path)))
        if path.suffix == ".safetensors":
            _refuse_other_files(path)
    elif path.is_dir():
        refuse_other_folders(path)
        try:
            files_of(names_in(path), variant, allow_pickle)
        except ResurgeError as error:
            raise ResurgeError(f"{path}: {error}") from None


def refuse_bad_repository(source: Source) -> None:
    """The same of a repository, by the configurations that the local cache has or the hub gives.

    Nothing is said where there are neither: loading has more to go on.
    """
    index = _of_repository(source, INDEX)
    if index is None:
        return
    if found := index_faults(index):
        raise ResurgeError(other_model(source.name, "; ".join(found)))
    read = {part: _of_repository(source, f"{part}/{name}") for part, name in CONFIGS.items()}
    known = {part: config for part, config in read.items() if config is not None}
    if known.keys() == read.keys():
        refuse(_faults(known, index), source.name)


def config_faults(folder: Path) -> list[str]:
    """What is wrong with the configurations of a folder's parts."""
    read = {part: json_object(folder / part / name) for part, name in CONFIGS.items()}
    return _faults(read, json_object(folder / INDEX))


def _faults(read: Mapping[str, Config], index: Config) -> list[str]:
    _, kind = index.get("scheduler") or (None, None)
    return [
        *scheduler_faults(read["scheduler"], kind),
        *unet_faults(read["unet"]),
        *vae_faults(read["vae"]),
        *between_faults(read["unet"], read["vae"], read["text_encoder"]),
    ]


def index_faults(index: Mapping[str, Any]) -> list[str]:
    """What a model_index.json says that is no Stable Diffusion pipeline of ours."""
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        return [f"it is a {kind}" if kind else "its model_index.json names no pipeline"]
    found = []
    for part, wanted in CLASSES.items():
        entry = index.get(part)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if name != wanted:
            found.append(f"its {part} is {'missing' if name is None else f'a {name}'}")
    return found


def other_model(source: str, what: str) -> str:
    """What to say of another kind of model."""
    return (
        f"{source!r}: {what}; it must be a text-to-image Stable Diffusion 1.x or 2.x model "
        "with one text encoder (StableDiffusionPipeline)"
    )


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says of its tensors before their numbers; `notes` are its own."""

    shapes: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, str]


def header_of(path: Path) -> Header:
    """A .safetensors file's header.

    Raises:
        ResurgeError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {size:,} bytes")
            found = dict(json.loads(file.read(size)))
        notes = dict(found.pop("__metadata__", None) or {})
        return Header({name: tuple(one["shape"]) for name, one in found.items()}, notes)
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ResurgeError(f"{path} is no safetensors file: {error}") from error


def checkpoint_names(path: Path) -> list[str]:
    """The names of a .safetensors file's tensors.

    Raises:
        ResurgeError: it is no such file.
    """
    return list(header_of(path).shapes)


def weight_shapes(folder: Path, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of a model folder's UNet and text encoder, by "unet.…" and "text_encoder.…" as the
    files have the names; of weights in safetensors only.

    Raises:
        ResurgeError: as `files_of`.
    """
    found = files_of(names_in(folder), variant, allow_pickle=False)
    return {
        f"{part}.{name}": shape
        for part in ("unet", "text_encoder")
        for file in found[part].files
        for name, shape in header_of(folder / part / file).shapes.items()
    }


def _refuse_other_files(path: Path) -> None:
    names = checkpoint_names(path)
    if any(LORA.search(name) for name in names):
        raise ResurgeError(
            f"{path} is a LoRA, a change to a model and no model; merge it into the model that it "
            "was made for (pipe.load_lora_weights, pipe.fuse_lora, pipe.save_pretrained), and give "
            "that folder"
        )
    for start, family in OF_OTHERS.items():
        if any(name.startswith(start) for name in names):
            raise ResurgeError(other_model(str(path), f"it is {family} checkpoint"))
    lacks = [p for start, p in NEEDED.items() if not any(name.startswith(start) for name in names)]
    if lacks:
        raise ResurgeError(
            f"{path} has no weights of {' and '.join(lacks)} under the names of original Stable "
            "Diffusion checkpoints; give the whole model, as one such file or as a folder in "
            "diffusers' layout"
        )


def refuse_other_folders(path: Path) -> None:
    """See that a folder has the layout and the parts of a Stable Diffusion pipeline.

    Raises:
        ResurgeError: it is another model, or none.
    """
    if not (path / INDEX).is_file():
        lora = next(path.glob("*lora*.safetensors"), None) or next(
            path.glob("adapter_config.json"), None
        )
        what = f"; {lora.name} is a LoRA, a change to a model and no model" if lora else ""
        raise ResurgeError(
            f"{path} has no {INDEX}: it is no model in diffusers' layout{what}; give a folder that "
            "pipe.save_pretrained has written, or a .safetensors checkpoint file itself"
        )
    if found := index_faults(json_object(path / INDEX)):
        raise ResurgeError(other_model(str(path), "; ".join(found)))


def _of_repository(source: Source, name: str) -> Mapping[str, Any] | None:
    """A configuration file of a repository; None if it cannot be had at once."""
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:  # a head that only plans
        return None
    found = try_to_load_from_cache(source.name, name, revision=source.revision)
    if isinstance(found, str):
        return json_object(Path(found))
    if not _is_hub_there():
        return None
    disable_progress_bars()
    try:
        return json_object(Path(hf_hub_download(source.name, name, revision=source.revision)))
    except ResurgeError:
        raise
    except Exception:  # not there, or not for everybody
        return None


@lru_cache(maxsize=1)
def _is_hub_there() -> bool:
    """Whether the hub answers within a few seconds: its own readers try for a minute."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # whatever its client raises
        return False
    return True


def json_object(path: Path) -> Mapping[str, Any]:
    """A configuration file.

    Raises:
        ResurgeError: it is missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResurgeError(f"{path} is missing; take the whole model") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ResurgeError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ResurgeError(f"{path} must hold a JSON object but holds {type(found).__name__}")
    return found


def _refusal(file: str) -> str:
    if not file.endswith(PICKLES):
        return f"{file} must be a .safetensors file"
    return (
        f"{file} is a pickle, which can run code when it is read; convert it to safetensors "
        "(`pipe.save_pretrained`), or set allow_pickle: true to read it with torch's weights-only "
        "loader"
    )
