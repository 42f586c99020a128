"""Edits as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from orchestrator.core.errors import ResurgeError
from workers.interfaces.edit import ModelEdit


def save_edits(path: Path, edits: Sequence[ModelEdit]) -> None:
    """Write edits, in order, as one safetensors file: tensors "0.…", kinds in its header."""
    from safetensors.torch import save_file

    tensors = {
        f"{place}.{name}": value.detach().cpu().contiguous()
        for place, edit in enumerate(edits)
        for name, value in edit.tensors().items()
    }
    kinds = [{"kind": edit.kind, "config": edit.config()} for edit in edits]
    save_file(tensors, path, metadata={"edits": json.dumps(kinds)})


def load_edits(path: Path) -> tuple[ModelEdit, ...]:
    """The inverse of `save_edits`.

    Raises:
        ResurgeError: the file holds no edits, or a kind that is not known.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = (file.metadata() or {}).get("edits")
        if header is None:
            raise ResurgeError(f"{path} holds no edits of a model")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tuple(
        _edit_class(entry["kind"]).load(_under(f"{place}.", tensors), entry["config"])
        for place, entry in enumerate(json.loads(header))
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _edit_class(kind: str) -> type[ModelEdit]:
    """By name; the adapters' module defines more kinds and is imported for that."""
    import workers.editing.adapters  # noqa: F401

    waiting: list[type[ModelEdit]] = [ModelEdit]
    while waiting:
        cls = waiting.pop()
        if cls.__dict__.get("kind") == kind:
            return cls
        waiting += cls.__subclasses__()
    raise ResurgeError(f"unknown kind of edit {kind!r}; it was made by another version")
