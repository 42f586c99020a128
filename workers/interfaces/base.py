"""What a base model is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from orchestrator.core.plugin import BasePlugin

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


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
