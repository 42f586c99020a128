"""A base model kept warm: loaded once, edits applied to it and undone bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orchestrator.errors import ResurgeError
from workers.bases.base import Base

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

EDITABLE = ("unet", "text_encoder")
"""The pipeline's parts that edits may change; the autoencoder and the tokenizer stay."""


class WarmPipeline:
    """A pipeline with a pristine copy of its editable weights, named "unet.…", "text_encoder.…".

    The copy is kept on the CPU. `pipe` is the live pipeline: what edits change and samplers use.
    """

    def __init__(self, base: Base, device: str) -> None:
        self.base = base
        self.device = device
        self._load()

    def _load(self) -> None:
        self.pipe: StableDiffusionPipeline = self.base.load(self.device)
        self._base = {name: _snapshot(value) for name, value in self._live().items()}

    def _live(self) -> dict[str, nn.Parameter]:
        return {
            f"{part}.{name}": value
            for part in EDITABLE
            for name, value in getattr(self.pipe, part).named_parameters()
        }

    @torch.no_grad()
    def reset(self) -> None:
        """Undo all edits: every weight is the base's again, bit for bit."""
        live = self._live()
        if live.keys() != self._base.keys():
            # An edit that raised half-way can leave adapters behind; a fresh load leaves nothing.
            self._load()
            live = self._live()
        for name, value in live.items():
            value.copy_(self._base[name])
            value.requires_grad_(False)
            value.grad = None
        for part in EDITABLE:
            getattr(self.pipe, part).eval()

    @torch.no_grad()
    def apply(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the base with the weights in `tensors` in place of its own.

        Raises:
            ResurgeError: a name or a shape that the base does not have.
        """
        self.reset()
        live = self._live()
        wrong = [n for n, t in tensors.items() if n not in live or live[n].shape != t.shape]
        if wrong:
            raise ResurgeError(
                f"these weights do not fit base {self.base.name!r}: {', '.join(wrong[:5])}"
                f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; "
                "were they made with another base?"
            )
        for name, value in tensors.items():
            live[name].copy_(value)

    def changed(self) -> dict[str, Tensor]:
        """CPU copies of the weights that differ from the base: all that an edit's result needs."""
        return {
            name: _snapshot(value)
            for name, value in self._live().items()
            if not torch.equal(value.detach().cpu(), self._base[name])
        }

    def base_state(self) -> dict[str, Tensor]:
        """The base's weights on the CPU; not to be written to."""
        return dict(self._base)

    def state(self) -> dict[str, Tensor]:
        """The present weights on the CPU, a snapshot that shares what the base already holds."""
        return self._base | self.changed()


def _snapshot(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)
