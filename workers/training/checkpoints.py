"""Training state on disk, so that whatever is killed goes on from where it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from orchestrator.core.errors import StoreError, StoreUnavailable, UnreadableFile

if TYPE_CHECKING:
    from orchestrator.core.stage import Stage
    from orchestrator.store.store import Store
    from workers.runtime.pace import Pace


log = logging.getLogger("resurge.worker")


class StoreCheckpoints:
    """Kept in the store under the unlearning stage's digest until the stage is committed."""

    def __init__(self, store: Store, stage: Stage, pace: Pace) -> None:
        self.store, self.digest, self.pace = store, stage.digest, pace

    def load(self, phase: str) -> tuple[int, dict[str, Tensor]] | None:
        kept = latest_state(self.store, self.digest, phase)
        return None if kept is None else kept[:2]

    def is_due(self) -> bool:
        return self.pace.is_due()

    def save(self, phase: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        keep_state(self.store, self.digest, step, tensors, {}, phase)
        self.pace.done()
        self.pace.leave_if_asked()


def keep_state(
    store: Store,
    digest: str,
    step: int,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    phase: str = "train",
) -> None:
    """Put a training state into the store, in place of an earlier one; `values` are JSON."""
    with store.scratch() as folder:
        path = folder / "checkpoint.safetensors"
        save_tensors(path, tensors)
        store.put_checkpoint(digest, step, path, values, phase)


def latest_state(
    store: Store, digest: str, phase: str = "train", at_most: int | None = None
) -> tuple[int, dict[str, Tensor], Any] | None:
    """The last training state of at most so many steps: its step, tensors and JSON values.

    A damaged one, which the store deletes, is passed over: what it held is trained again.
    """
    for step in reversed(store.checkpoints(digest, phase)):
        if at_most is not None and step > at_most:
            continue
        try:
            with store.checkpoint(digest, step, phase) as (path, values):
                return step, load_tensors(path), values
        except StoreUnavailable:
            raise
        except StoreError as error:
            log.warning("%s", error)
    return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU.

    Raises:
        UnreadableFile: it is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UnreadableFile(f"{path} is no safetensors file: {error}") from error
