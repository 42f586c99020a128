"""What an unlearning changed: applied to a pipeline, undone, stored as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline

Undo = Callable[[], None]


class ModelEdit(ABC):
    """One change of a pipeline. Immutable once made; may be applied to many pipelines.

    A subclass with a `kind`, the word that files of edits have for it, is known from then on.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[ModelEdit]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            ModelEdit.kinds[cls.kind] = cls

    @abstractmethod
    def apply(self, pipe: Pipeline) -> Undo | None:
        """Change `pipe`; return what takes hooks off again, None if only weights changed.

        Raises:
            ResurgeError: a name or a shape that the pipeline does not have.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that has to be stored, by name."""

    def config(self) -> dict[str, Any]:
        """JSON values beside the tensors."""
        return {}

    @classmethod
    @abstractmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ModelEdit:
        """The inverse of `tensors` and `config`."""
