"""Sums over many captions' embeddings: what closed-form edits should leave alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText, place
from workers.data.metadata import text_of
from workers.interfaces.material import Made, Material, Work

if TYPE_CHECKING:
    from torch import Tensor

CAPTIONS_PER_PASS = 64


class CaptionSumsSettings(Settings):
    """Which captions."""

    file: PlaceText | None = Field(
        None, description="a text file, one caption a line; null: the prompts that are asked for"
    )


class CaptionSums(Material):
    """Σ e eᵀ over every token of many captions, fp64 (width, width).

    MACE's cache of general (or of a domain's) knowledge: with it the values that should stay are
    Σ (W e) eᵀ = W · Σ e eᵀ for every projection W, so one matrix serves all of them.
    """

    name = "caption_sums"
    version = 1
    Settings = CaptionSumsSettings
    settings: CaptionSumsSettings

    def fingerprint(self) -> str:
        """sha256 of the file."""
        if self.settings.file is None:
            return ""
        return hashlib.sha256("\n".join(self.captions()).encode()).hexdigest()

    def captions(self) -> list[str]:
        """The file's lines that are not empty.

        Raises:
            ResurgeError: there is no such file, or it is empty.
        """
        assert self.settings.file is not None  # else the prompts are the captions
        path = place(self.settings.file)
        if not path.is_file():
            raise ResurgeError(f"the caption file {str(path)!r} does not exist")
        lines = [line.strip() for line in text_of(path).split("\n")]
        if not any(lines):
            raise ResurgeError(f"the caption file {str(path)!r} has no captions")
        return [line for line in lines if line]

    def make(self, work: Work) -> Made:
        """Encode the captions and sum."""
        import torch

        from workers.diffusion.text import embed

        captions = self.captions() if self.settings.file else list(work.asked["prompts"])
        width = work.pipe.unet.config.cross_attention_dim
        gram = torch.zeros(width, width, dtype=torch.float64)
        for start in range(0, len(captions), CAPTIONS_PER_PASS):
            text = embed(work.pipe, captions[start : start + CAPTIONS_PER_PASS])
            tokens = text.flatten(0, 1).to("cpu", torch.float64)
            gram += tokens.T @ tokens
            work.progress(min(start + CAPTIONS_PER_PASS, len(captions)), len(captions), {})
        return Made({"gram": gram}, {"captions": float(len(captions))})

    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Tensor:
        """fp64 (width, width)."""
        return tensors["gram"]
