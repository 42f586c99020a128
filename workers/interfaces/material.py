"""What a material is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.core.plugin import MaterialPlugin
from workers.runtime.progress import TellProgress

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


@dataclass(frozen=True)
class Work:
    """What a material is made from: the model, what was asked, and the material before it."""

    pipe: Pipeline
    asked: Mapping[str, Any]
    source: Any
    progress: TellProgress


@dataclass(frozen=True)
class Made:
    """A material as it is stored, and numbers worth keeping."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)


class Material(MaterialPlugin):
    """Made once for a model and what is asked of it, stored, and read by many unlearnings."""

    @abstractmethod
    def make(self, work: Work) -> Made:
        """Compute it; the pipeline's weights are left as they are."""

    @abstractmethod
    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Any:
        """What methods get to see of the stored tensors; `asked` is what `make` was asked."""
