"""Stable Diffusion pipelines as files: which may be read, and reading them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.core.errors import ResurgeError
from workers.data.pinned import Source, offline_hint, sentence
from workers.interfaces.pipeline import PARTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from workers.interfaces.pipeline import Pipeline

Dtype = Literal["float32", "float16", "bfloat16"]
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PREDICTIONS = ("epsilon", "v_prediction")


def load_pipeline(
    source: Source,
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
    path = source.path
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
            pipe = _read_layout(source, allow_pickle, options)
    except ResurgeError:
        raise
    except Exception as error:  # the readers raise whatever they trip over in a broken file
        hint = "" if path.exists() else offline_hint("the local cache")
        raise ResurgeError(
            f"cannot load a Stable Diffusion pipeline from {source.name!r}: {sentence(error)}{hint}"
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
    source: Source, allow_pickle: bool, options: dict[str, Any]
) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    where = source.where
    kind = StableDiffusionPipeline.load_config(where, revision=source.revision).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ResurgeError(_other_model(where, f"a {kind}"))
    names = [file.name for file in (source.path / "unet").glob("*.safetensors")]
    return StableDiffusionPipeline.from_pretrained(
        where,
        revision=source.revision,
        # None reads safetensors where there are any, and pickles else.
        use_safetensors=None if allow_pickle else True,
        # A folder may have its weights under that name only.
        variant="fp16" if names and all(".fp16." in name for name in names) else None,
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
            f"cannot load {path}: {sentence(error)}; a checkpoint file holds no configuration and "
            "no tokenizer: set config to a folder that does, if the hub cannot be reached"
        ) from error


def weight_files(path: Path) -> list[Path]:
    """Files that hold weights, pickles among them: a checkpoint, or a folder's, part by part."""
    files = [path] if path.is_file() else [f for p in PARTS for f in sorted((path / p).glob("*"))]
    return [file for file in files if file.suffix in (".safetensors", *PICKLES)]


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
        there = weight_files(path)
        for folder in (path / part for part in PARTS):
            weights = [file for file in there if file.parent == folder]
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


def _other_model(source: str, what: str) -> str:
    return (
        f"{source!r} is {what}; it must be a text-to-image Stable Diffusion 1.x or 2.x model "
        "with one text encoder (StableDiffusionPipeline)"
    )
