"""Training state on disk, so that whatever is killed goes on from where it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from orchestrator.stage import Stage
    from orchestrator.store import Store

EVERY_S = 600.0
"""Full training state of Stable Diffusion is gigabytes: rarely enough not to be felt."""


class Checkpoints(Protocol):
    """Where an unlearning's phases keep their state; a phase is one optimisation, by name."""

    def load(self, phase: str) -> tuple[int, dict[str, Tensor]] | None:
        """The last state of a phase and the steps behind it; None if there is none."""

    def is_due(self) -> bool:
        """Whether it is time to save."""

    def save(self, phase: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a phase's state, in place of an earlier one."""


class NoCheckpoints:
    """Nothing is kept."""

    def load(self, phase: str) -> None:
        return None

    def is_due(self) -> bool:
        return False

    def save(self, phase: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        return None


class StoreCheckpoints:
    """Kept in the store under the unlearning stage's digest until the stage is committed."""

    def __init__(self, store: Store, stage: Stage) -> None:
        self.store, self.digest = store, stage.digest
        self._saved_s = time.monotonic()

    def load(self, phase: str) -> tuple[int, dict[str, Tensor]] | None:
        steps = self.store.checkpoints(self.digest, phase)
        if not steps:
            return None
        with self.store.checkpoint(self.digest, steps[-1], phase) as (path, _):
            return steps[-1], load_tensors(path)

    def is_due(self) -> bool:
        return time.monotonic() - self._saved_s >= EVERY_S

    def save(self, phase: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        with self.store.scratch() as folder:
            path = folder / "checkpoint.safetensors"
            save_tensors(path, tensors)
            self.store.put_checkpoint(self.digest, step, path, {}, phase)
        self._saved_s = time.monotonic()

    def drop(self) -> None:
        """Forget all phases."""
        self.store.drop_checkpoints(self.digest)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)
