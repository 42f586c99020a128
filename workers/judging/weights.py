"""Weight files that settings name: what they must hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError

if TYPE_CHECKING:
    from torch import Tensor


def read(path: Path) -> dict[str, Tensor]:
    """A .safetensors file's tensors in fp32, "layers.2.weight" before "layers.10.weight"."""
    from safetensors.torch import load_file

    from workers.runtime.finite import check_tensors

    try:
        tensors = load_file(path)
    except Exception as error:  # the reader raises whatever it trips over
        raise ResurgeError(f"cannot read {path}: {error}; it must be a safetensors file") from error
    check_tensors(tensors, str(path), "make the file again")

    def by_number(name: str) -> list[str | int]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return {name: tensors[name].float() for name in sorted(tensors, key=by_number)}


def check_width(path: Path, needed: int, got: int) -> None:
    """See that a file's weights are for the model's embeddings.

    Raises:
        ResurgeError: they are of another width.
    """
    if needed != got:
        raise ResurgeError(
            f"{path} is for embeddings of {needed} numbers but the model's have {got}; "
            "set model to the CLIP model that it was trained on"
        )
