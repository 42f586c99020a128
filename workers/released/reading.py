"""Weights of others as tensors, under the names of the model at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from orchestrator.core.errors import ResurgeError
from workers.data.loading import NO_WEIGHTS
from workers.data.pinned import Source
from workers.data.pipeline_files import json_object
from workers.editing.edits import live_parameters
from workers.released.lora import place_factors
from workers.released.names import (
    LDM,
    LDM_OTHER_TEXT,
    LDM_TEXT,
    Shapes,
    canonical,
    in_parts,
    is_ldm,
    refuse_other_shapes,
)
from workers.released.source import BasedSettings, Released, find_released, local

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

COMPUTES = (
    "attention_head_dim", "num_attention_heads", "act_fn", "norm_num_groups", "norm_eps",
    "flip_sin_to_cos", "freq_shift", "center_input_sample", "downsample_padding",
    "mid_block_scale_factor", "use_linear_projection", "hidden_act", "layer_norm_eps",
)  # fmt: skip
"""Settings of a part with which the same weights compute something else."""


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors on the CPU.

    Raises:
        ResurgeError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ResurgeError(f"{path} is no safetensors file: {error}") from error


def released_weights(pipe: Pipeline, released: Released) -> dict[str, Tensor]:
    """The weights of a folder or file as they are stored, by the names of `pipe`'s.

    A folder's parts have all weights; a lone file may have some.

    Raises:
        ResurgeError: names or shapes are not the model's, or they belong to another computation.
    """
    _refuse_other_configs(pipe, released)
    found: dict[str, Tensor] = {}
    whole = {part for part, _ in released.parts}
    for part, path in released.parts:
        tensors = load_safetensors(path)
        found |= {canonical(f"{part}.{name}"): value for name, value in tensors.items()}
    for path in released.files:
        tensors = load_safetensors(path)
        if is_ldm(tensors):
            whole.add("unet")
            found |= _from_ldm(pipe, path, tensors)
        else:
            found |= {name: tensors[own] for name, own in in_parts(str(path), tensors).items()}
    found = {name: value for name, value in found.items() if not NO_WEIGHTS.search(name)}
    names = _names(pipe)
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    model = {short: tuple(live_parameters(pipe)[name].shape) for short, name in names.items()}
    refuse_other_shapes(str(released.root), shapes, model, whole)
    return {names[name]: value for name, value in found.items()}


def base_of(
    pipe: Pipeline, settings: BasedSettings, ours: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The weights that the released ones were made from: the sweep's base or the settings' own.

    Raises:
        ResurgeError: as `released_weights`.
    """
    if settings.base is None:
        return ours
    source = Source(settings.base, settings.base_revision)
    return released_weights(pipe, find_released(local(source)))


def merged_lora(pipe: Pipeline, path: Path) -> dict[str, Tensor]:
    """What a LoRA file adds to weights, fp32 on the CPU, by the names of `pipe`'s.

    Raises:
        ResurgeError: it does not fit, or changes nothing.
    """
    live, names = live_parameters(pipe), _names(pipe)
    shapes = {short: tuple(live[name].shape) for short, name in names.items()}
    change = {names[name]: delta for name, delta in _lora_change(path, shapes).items()}
    if not any(delta.any() for delta in change.values()):
        raise ResurgeError(f"{path} changes nothing: every product of its factors is 0")
    return change


def differences(
    given: Mapping[str, Tensor], before: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """`given` less `before` in fp32, of the weights that differ by more than how they are stored.

    Raises:
        ResurgeError: `before` lacks some of the names, or none differs.
    """
    lacks = sorted(given.keys() - before.keys())
    if lacks:
        raise ResurgeError(f"the base of {where} has no {lacks[0]}; give the whole base")
    found = {
        name: value.float() - before[name].float()
        for name, value in given.items()
        if differs(value, before[name])
    }
    if not found:
        raise ResurgeError(
            f"the weights in {where} are those of the base they are compared with: there is no "
            "difference to measure"
        )
    return found


def differs(given: Tensor, before: Tensor) -> bool:
    """Whether a weight is another, not just the same one stored in a coarser type."""
    return not (given.to(before.dtype).equal(before) or before.to(given.dtype).equal(given))


def _lora_change(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """What a LoRA file adds to weights, fp32, by canonical names.

    Raises:
        ResurgeError: as `place_factors`; or an alpha is no number above 0.
    """
    placed, tensors = place_factors(path, shapes), load_safetensors(path)
    found: dict[str, Tensor] = {}
    for one in placed:
        down, up = (tensors[one.factors.names[role]].float().flatten(1) for role in ("down", "up"))
        factor = one.factors.factor
        if one.factors.alpha is not None:
            factor = float(tensors[one.factors.alpha]) / len(down)
        if not math.isfinite(factor):
            raise ResurgeError(f"{path}: the alpha of {one.weight} is no finite number")
        delta = factor * (up @ down).view(one.shape)
        found[one.weight] = found[one.weight] + delta if one.weight in found else delta
    return found


def _names(pipe: Pipeline) -> dict[str, str]:
    """The model's own names by the canonical ones."""
    return {canonical(name): name for name in live_parameters(pipe)}


def _from_ldm(pipe: Pipeline, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet, and CLIP's text encoder, of a file with the names of original checkpoints."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    whole = any(name.startswith(LDM) for name in tensors)
    own = {n if whole else f"{LDM}{n}": v for n, v in tensors.items()}
    if any(name.startswith(LDM_OTHER_TEXT) for name in own):
        raise ResurgeError(
            f"{path} has its text encoder in OpenCLIP's names, which are not read; give the model "
            "as a folder in diffusers' layout, or the UNet's weights alone"
        )
    unet = {name: value for name, value in own.items() if name.startswith(LDM)}
    text = {n.removeprefix(LDM_TEXT): v for n, v in own.items() if n.startswith(LDM_TEXT)}
    try:
        made = convert_ldm_unet_checkpoint(dict(unet), dict(pipe.unet.config))  # type: ignore[call-overload]
    except (KeyError, IndexError) as error:
        raise ResurgeError(
            f"{path} is no UNet of the base's form: {error} is missing; a file with the names of "
            "original checkpoints must have all of it"
        ) from error
    if len(made) != len(unet):
        raise ResurgeError(
            f"{path} has {len(unet)} weights of a UNet, of which {len(made)} are known by the "
            "names of original checkpoints: is it of another family?"
        )
    found = {f"unet.{name}": value for name, value in made.items()}
    return found | {canonical(f"text_encoder.{name}"): value for name, value in text.items()}


def _refuse_other_configs(pipe: Pipeline, released: Released) -> None:
    for path in released.configs:
        said = json_object(path)
        if path.name == "scheduler_config.json":
            ours: Any = pipe.scheduler.config
            keys: tuple[str, ...] = ("prediction_type",)
        else:
            is_text = "architectures" in said or "hidden_act" in said
            ours = pipe.text_encoder.config.to_dict() if is_text else pipe.unet.config  # type: ignore[attr-defined]
            keys = COMPUTES
        for key in keys:
            if key in said and key in ours and not _same(said[key], ours[key]):
                raise ResurgeError(
                    f"{path} says {key} {said[key]!r} but the base has {ours[key]!r}: the same "
                    "weights would compute something else; they were made with another base"
                )


def _same(one: object, other: object) -> bool:
    """A tuple is a list in JSON."""
    pair = [list(v) if isinstance(v, tuple) else v for v in (one, other)]
    return pair[0] == pair[1]
