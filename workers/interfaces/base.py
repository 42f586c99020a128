"""What a base model is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.plugin import BasePlugin

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


@dataclass(frozen=True)
class WeightFiles:
    """What a base's weights are read from: files here, or a repository at a commit.

    Files that are no .safetensors are pickles, which are read only if `reads_pickles`.
    """

    files: tuple[Path, ...]
    revision: str | None
    reads_pickles: bool


class Base(BasePlugin):
    """A text-to-image model to begin from.

    A worker loads it once and keeps it; the caller owns the pipeline and may change its weights.
    """

    @abstractmethod
    def load(self, device: str) -> Pipeline:
        """The pipeline on `device`, in evaluation mode, its safety checker off; in float32 unless
        the settings say otherwise.

        Raises:
            ResurgeError: the files are missing, or are pickles.
        """

    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as JSON values, for a record to keep."""
        return {}

    def weights(self) -> WeightFiles | None:
        """What the weights are read from; None if the base brings its own."""
        return None
