"""Any Stable Diffusion pipeline in diffusers' layout: a folder or a repository id."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.errors import ResurgeError
from orchestrator.plugin import Settings
from workers.bases.base import Base

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

TEMPLATES = (
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "a drawing of {}",
    "{}",
)
HASH_CHUNK_BYTES = 1 << 20


class DiffusersSettings(Settings):
    """Which model, and what should survive erasing."""

    source: str = Field(description="a folder, or a repository id such as owner/name")
    revision: str | None = Field(None, description="a repository's branch, tag or commit")
    retained: tuple[str, ...] = Field((), description="concepts that should survive erasing")


class Diffusers(Base):
    """A Stable Diffusion model in diffusers' layout, from a folder or a repository.

    Weights are read from safetensors only and kept in fp32. Any text is a concept. The concept
    that the model never knew is a nonce word.
    """

    name = "diffusers"
    version = 1
    Settings = DiffusersSettings

    def concepts(self) -> None:
        """Any text is allowed."""
        return None

    def prompts(self, concept: str) -> tuple[str, ...]:
        """Five templates."""
        return tuple(template.format(concept) for template in TEMPLATES)

    def retained(self, concept: str) -> tuple[str, ...]:
        """The settings' concepts, without the erased one."""
        return tuple(word for word in self.settings.retained if word != concept)

    def never_known(self) -> str:
        """A word that means nothing."""
        return "a zorblax"

    def fingerprint(self) -> str:
        """sha256 of a folder's json and safetensors files; a repository's revision."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        folder = Path(self.settings.source).expanduser()
        if not folder.is_dir():
            return self.settings.revision or ""
        files = sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors"))
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\n".encode())
        return total.hexdigest()

    def load(self, device: str) -> StableDiffusionPipeline:
        """Read the pipeline in fp32 without its safety checker."""
        source = self.settings.source
        folder = Path(source).expanduser()
        return load_pipeline(
            str(folder) if folder.is_dir() else source, self.settings.revision, device
        )


def load_pipeline(source: str, revision: str | None, device: str) -> StableDiffusionPipeline:
    """Read a Stable Diffusion pipeline, fp32, in evaluation mode, quiet.

    Raises:
        ResurgeError: nothing is there, or the weights are not safetensors.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # A worker's log is read later, where bars of files being read are noise.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            source,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError) as error:
        raise ResurgeError(
            f"cannot load a Stable Diffusion pipeline from {source!r}: {error}\n"
            "it must be a folder or a repository id in diffusers' layout, with safetensors weights"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.float().eval().requires_grad_(False)
    return pipe.to(device)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
