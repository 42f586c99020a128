"""Stable Diffusion pipelines, read: every weight of every part from the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.core.errors import ResurgeError
from workers.data.files import place
from workers.data.hub_access import asking_the_hub, out_of_reach
from workers.data.loading import be_quiet, load_weights, refuse_wrong_keys, unloaded
from workers.data.pinned import Source, sentence
from workers.data.pipeline_files import (
    CLASSES,
    INDEX,
    NEEDED,
    checkpoint_names,
    files_of,
    index_faults,
    names_in,
    other_model,
    refuse_bad_model,
)
from workers.interfaces.fit import refuse, scheduler_faults, unet_faults, vae_faults
from workers.interfaces.pipeline import PARTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from workers.interfaces.pipeline import Pipeline

Dtype = Literal["float32", "float16", "bfloat16"]


def load_pipeline(
    source: Source,
    device: str,
    *,
    dtype: Dtype = "float32",
    variant: str | None = None,
    allow_pickle: bool = False,
    config: str | None = None,
) -> Pipeline:
    """Read a Stable Diffusion pipeline, in evaluation mode, quiet, its scheduler as it is.

    The hub is asked for repositories, and for the configuration of a checkpoint file that comes
    without one; never with HF_HUB_OFFLINE=1.

    Raises:
        ResurgeError: nothing is there, the weights are pickles or not all there, or it is another
            kind of model.
    """
    import torch

    be_quiet()
    path = source.path
    refuse_bad_model(path, variant, allow_pickle)
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
            with asking_the_hub(source):
                pipe = _read_layout(source, variant, allow_pickle, options)
    except (ResurgeError, MemoryError):
        raise
    except Exception as error:  # the readers raise whatever they trip over in a broken file
        raise ResurgeError(
            f"cannot load a Stable Diffusion pipeline from {source.name!r}: {sentence(error)}"
        ) from error
    _refuse_other_models(pipe, source.name)
    pipe.set_progress_bar_config(disable=True)
    for part in (getattr(pipe, name) for name in PARTS):
        if part.dtype != options["dtype"]:
            part.to(options["dtype"])
        part.eval().requires_grad_(False)
    moved: Pipeline = pipe.to(device)
    return moved


def _read_layout(
    source: Source, variant: str | None, allow_pickle: bool, options: dict[str, Any]
) -> StableDiffusionPipeline:
    """Part by part: each may be in a variant of its own, and must say what it lacked."""
    import diffusers
    import transformers
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    where, revision = source.where, source.revision
    if found := index_faults(StableDiffusionPipeline.load_config(where, revision=revision)):
        raise ResurgeError(other_model(where, "; ".join(found)))
    stated = DDIMScheduler.load_config(where, subfolder="scheduler", revision=revision)
    refuse(scheduler_faults(stated), source.name)
    names, are_all = (names_in(source.path), True) if source.path.is_dir() else _known(source)
    try:
        chosen = files_of(names, variant, allow_pickle)
    except ResurgeError as error:
        which = "" if are_all else "the local cache does not hold all of it, and the hub is away: "
        raise ResurgeError(f"{source.name!r}: {which}{error}") from None
    parts = {}
    for part, files in chosen.items():
        if variant is None and files.variant is not None and not are_all:
            raise ResurgeError(
                f"of {source.name!r} only the {files.variant} weights of {part} are in the local "
                "cache, and the hub cannot be asked whether it has others; set variant: "
                f"{files.variant} if these are meant"
            )
        library = transformers if part == "text_encoder" else diffusers
        parts[part] = load_weights(
            getattr(library, CLASSES[part]),
            where,
            revision,
            part,
            variant=files.variant,
            use_safetensors=not files.is_pickled,
            dtype=options["dtype"],
        )
    return StableDiffusionPipeline.from_pretrained(where, revision=revision, **parts, **options)


def _known(source: Source) -> tuple[list[str], bool]:
    """The files of a repository at its commit, and whether these are all.

    They are not where the hub cannot be asked: then they are those in the local cache.
    """
    from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache

    cached = try_to_load_from_cache(source.name, INDEX, revision=source.revision)
    try:
        if not is_offline_mode():
            return HfApi().list_repo_files(source.name, revision=source.revision), True
    except Exception:  # no way there, or no leave to read: the cache may have it
        if not isinstance(cached, str):
            raise
    if not isinstance(cached, str):
        raise out_of_reach(source)
    return names_in(Path(cached).parent), False


def _read_file(path: Path, config: str | None, options: dict[str, Any]) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import is_offline_mode

    folder = None if config is None else place(config)
    if folder is not None and not (folder / INDEX).is_file():
        raise ResurgeError(f"config must be a folder with a {INDEX} but got {config!r}")
    is_offline = folder is not None or is_offline_mode()
    try:
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=folder and str(folder), local_files_only=is_offline, **options
        )
    except KeyError as error:
        refuse_wrong_keys("checkpoint", str(path), missing=[str(error.args[0])])
        raise
    except Exception as error:
        if folder is not None:
            raise
        raise ResurgeError(
            f"cannot load {path}: {sentence(error)}; a checkpoint file holds no configuration and "
            "no tokenizer: set config to a folder that does, if the hub cannot be reached"
        ) from error
    for part in PARTS:
        refuse_wrong_keys(CLASSES[part], f"{path}, {part}", missing=unloaded(getattr(pipe, part)))
    if path.suffix == ".safetensors":
        _refuse_more(path, pipe)
    return pipe


def _refuse_more(path: Path, pipe: StableDiffusionPipeline) -> None:
    """See that a checkpoint file has no more of UNet and autoencoder than was read.

    Their tensors have other names in such a file, but each has one there. Text encoders are stored
    in several forms, some with layers that are not used.
    """
    names = checkpoint_names(path)
    for part, start in (("unet", "model.diffusion_model."), ("vae", "first_stage_model.")):
        there = [n for n in names if n.startswith(start) and not n.startswith(f"{start}loss.")]
        count = len(getattr(pipe, part).state_dict())
        if len(there) > count:
            raise ResurgeError(
                f"{path} has {len(there)} tensors of the {NEEDED[start]} but the {CLASSES[part]} "
                f"of its configuration has {count}: they are of different models; set config to "
                "the folder that belongs to the file"
            )


def _refuse_other_models(pipe: StableDiffusionPipeline, source: str) -> None:
    unet, vae = pipe.unet.config, pipe.vae.config
    if unet.in_channels != vae.latent_channels:
        what = f"it is a UNet of {unet.in_channels} channels over latents of {vae.latent_channels}"
        raise ResurgeError(other_model(source, what))
    faults = scheduler_faults(pipe.scheduler.config, type(pipe.scheduler).__name__)
    refuse(faults + unet_faults(unet) + vae_faults(vae), source)
