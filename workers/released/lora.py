"""LoRA files: whose layer each pair of factors is, and how strongly it counts.

Read are kohya's names ("lora_unet_down_blocks_0_….lora_down.weight", the layer's path with
underscores), diffusers' of all its versions, and peft's; linear layers and convolutions. What is
added to a layer is alpha / rank · up · down (Hu et al. 2021).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import some
from workers.data.pipeline_files import Header, header_of
from workers.released.names import Shapes

PEFT = "base_model.model."
NOTES = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration in a file's header."""
_FACTOR = re.compile(
    r"(?P<layer>.+?)\."
    r"(?:processor\.(?P<old>to_q|to_k|to_v|to_out)_lora\.|lora_linear_layer\.|lora\.|lora_)"
    r"(?P<role>down|up|A|B)\.(?:default\.)?weight"
)
_ROLES: Mapping[str, Literal["down", "up"]] = {"down": "down", "A": "down", "up": "up", "B": "up"}
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora)?\.alpha")
_OTHERS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr",
    "lora_mid": "a LoRA with a third factor (Tucker)", "oft_": "OFT",
    "text_encoder_2.": "SDXL's", "lora_te2_": "SDXL's", "lora_te3_": "SD 3's",
    "transformer.": "a transformer's (SD 3, FLUX)", "lora_transformer_": "a transformer's",
    "bundle_emb": "textual inversion's", ".diff": "whole differences of weights",
}  # fmt: skip
"""What tells other kinds of change, by parts of names."""


@dataclass
class Factors:
    """A layer's pair. `path` is dotted, or of kohya's form with underscores; `part` may not be
    said. The names are those of the file's tensors; `factor` what is known of alpha / rank without
    reading `alpha`.
    """

    part: str | None
    path: str
    is_flat: bool
    names: dict[str, str] = field(default_factory=dict)
    alpha: str | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Placed:
    """A pair whose layer was found: the canonical name of its weight, and that one's shape."""

    factors: Factors
    weight: str
    shape: tuple[int, ...]


def read_factors(path: Path) -> list[Factors]:
    """The pairs of a LoRA file, from its header.

    Raises:
        ResurgeError: it holds something else too, half of a pair, or no alpha where one is needed.
    """
    header = header_of(path)
    found: dict[str, Factors] = {}
    others = []
    for name in header.shapes:
        if match := _FACTOR.fullmatch(name):
            layer = match["layer"] + (f".{match['old']}" if match["old"] else "")
            layer += ".0" if match["old"] == "to_out" else ""
            of = found.setdefault(layer, _of_layer(layer))
            of.names[_ROLES[match["role"]]] = name
        elif not _ALPHA.fullmatch(name):
            others.append(name)
    for name in header.shapes:
        if match := _ALPHA.fullmatch(name):
            if match["layer"] in found:
                found[match["layer"]].alpha = name
            else:
                others.append(name)
    others += [next(iter(one.names.values())) for one in found.values() if len(one.names) < 2]
    if others:
        kind = next((what for part, what in _OTHERS.items() if part in others[0]), None)
        what = f"{some(sorted(others))} {'is' if len(others) == 1 else 'are'} "
        raise ResurgeError(
            f"{path} is no LoRA that can be merged here: {what}"
            + (f"{kind}" if kind else "no pair of factors with an alpha")
            + "; what is read are pairs (down and up) of a Stable Diffusion 1.x or 2.x UNet and "
            "text encoder"
        )
    if not found:
        raise ResurgeError(f"{path} holds no LoRA")
    _weigh(path, header, found)
    return list(found.values())


def _of_layer(layer: str) -> Factors:
    for start, part in (("lora_unet_", "unet"), ("lora_te1_", "text_encoder"),
                        ("lora_te_", "text_encoder")):  # fmt: skip
        if layer.startswith(start):
            return Factors(part, layer.removeprefix(start).removeprefix("text_model_"), True)
    for part in ("unet", "text_encoder"):
        if layer.startswith(f"{part}."):
            path = layer.removeprefix(f"{part}.").removeprefix("text_model.")
            return Factors(part, path, False)
    return Factors(None, layer.removeprefix(PEFT).removeprefix("text_model."), False)


def _weigh(path: Path, header: Header, found: Mapping[str, Factors]) -> None:
    """Give each pair the alpha / rank that a configuration says; without one alpha is the rank."""
    config = path.parent / "adapter_config.json"
    is_peft = any(layer.startswith(PEFT) for layer in found)
    if is_peft and not config.is_file():
        raise ResurgeError(
            f"{path} has peft's names, and the alpha of such a file stands in its "
            "adapter_config.json: put that beside it"
        )
    try:
        text = config.read_text(encoding="utf-8") if is_peft else header.notes.get(NOTES, "{}")
        said = json.loads(text)
        for one in found.values():
            own = said if is_peft else _under(one.part or "unet", said)
            if own.get("use_dora"):
                raise ResurgeError(f"{path} is a DoRA, which is no sum of two factors")
            one.factor = _factor(one.path, header.shapes[one.names["down"]][0], own)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        where = str(config) if is_peft else f"{NOTES} in the header of {path}"
        raise ResurgeError(f"{where} cannot be read: {error}") from error


def _under(part: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(f"{part}."): v for k, v in said.items() if k.startswith(f"{part}.")}


def _factor(path: str, rank: int, said: Mapping[str, Any]) -> float:
    """Alpha / rank, or alpha / √rank if peft was told so."""
    if "lora_alpha" not in said:
        return 1.0
    pattern = said.get("alpha_pattern") or {}
    own = (alpha for key, alpha in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", path))
    alpha = float(next(own, said["lora_alpha"]))
    return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


def place_factors(path: Path, shapes: Shapes) -> list[Placed]:
    """Each pair of a LoRA file with its layer among the model's weights, by canonical names.

    Raises:
        ResurgeError: as `read_factors`; or a layer is not the model's, or of another shape.
    """
    header, found, wrong = header_of(path).shapes, list[Placed](), list[str]()
    flat = {(part, name.replace(".", "_")): whole for whole, part, name in _layers(shapes)}
    for one in read_factors(path):
        parts = (one.part,) if one.part else ("unet", "text_encoder")
        if one.is_flat:
            names = [flat.get((str(one.part), one.path), "")]
        else:
            names = [f"{part}.{one.path}.weight" for part in parts]
        weight = next((name for name in names if name in shapes), None)
        if weight is None or not _fits(one, header, shapes[weight]):
            wrong.append(one.names["down"])
        else:
            found.append(Placed(one, weight, tuple(shapes[weight])))
    if wrong:
        raise ResurgeError(
            f"{len(wrong)} of the {len(wrong) + len(found)} pairs in {path} fit no layer of the "
            f"base: {some(sorted(wrong))}; was it made for another base?"
        )
    return found


def _layers(shapes: Shapes) -> list[tuple[str, str, str]]:
    """(whole name, part, path) of every layer with a weight."""
    found = []
    for whole in shapes:
        part, _, rest = whole.partition(".")
        if rest.endswith(".weight"):
            found.append((whole, part, rest.removesuffix(".weight")))
    return found


def _fits(one: Factors, header: Shapes, weight: tuple[int, ...]) -> bool:
    """Whether up · down has the weight's shape: (outputs, inputs) or (outputs, inputs, k, k)."""
    down, up = header[one.names["down"]], header[one.names["up"]]
    if len(down) < 2 or len(up) < 2 or len(weight) < 2:
        return False
    # A linear layer and a convolution of one pixel are stored as either.
    inside, taken = math.prod(down[2:]), math.prod(weight[2:])
    return (
        (up[0], down[1], inside) == (weight[0], weight[1], taken)
        and up[1] == down[0]
        and math.prod(up[2:]) == 1
    )
