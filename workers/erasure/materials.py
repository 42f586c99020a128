"""What methods ask of material plug-ins, by name, and what they get from them. Import-light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from orchestrator.core.plugin import BasePlugin, MaterialPlugin, Need
from orchestrator.core.registry import find

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Clean latents (n, c, h, w) of pictures uint8 (n, 3, height, width), each with its prompt."""

    latents: Tensor
    images: Tensor
    prompts: Sequence[str]

    def __len__(self) -> int:
        return len(self.latents)


def need(
    name: str, asked: Mapping[str, Any] | None = None, of: Need | None = None, **settings: Any
) -> Need:
    """A material by its plug-in's name; `asked` is beside its settings, `of` what it is made of."""
    cls = find("material", name)
    plugin = cast(MaterialPlugin, cls(cls.Settings(**settings)))
    return Need(plugin, asked or {}, of)


def need_pictures(base: BasePlugin, prompts: Sequence[str], images_per_prompt: int) -> Need:
    """`Pictures` drawn with the base's own guidance and sampler steps."""
    return need(
        "images",
        {"prompts": list(prompts)},
        images_per_prompt=images_per_prompt,
        guidance=base.guidance,
        sampler_steps=base.sampler_steps,
    )


def need_caption_sums(file: str | None, prompts: Sequence[str]) -> Need:
    """Sums over a file's captions, or over `prompts`."""
    if file is None:
        return need("caption_sums", {"prompts": list(prompts)})
    return need("caption_sums", file=file)


def pack(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8, eight to a byte."""
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`."""
    import math

    import numpy as np
    import torch

    bits = np.unpackbits(packed.numpy(), count=math.prod(shape))
    return torch.from_numpy(bits).bool().reshape(tuple(shape))
