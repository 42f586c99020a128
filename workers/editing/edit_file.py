"""Edits as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.errors import ResurgeError, UnreadableFile
from workers.editing.adapters import Bottlenecks, GatedLora
from workers.editing.edits import LowRank, Weights
from workers.editing.learned_token import LearnedToken
from workers.interfaces.edit import ModelEdit

OURS: dict[str, type[ModelEdit]] = {
    cls.kind: cls for cls in (Weights, LowRank, Bottlenecks, GatedLora, LearnedToken)
}


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
        UnreadableFile: it is no safetensors file, or holds no edits.
        ResurgeError: it holds edits of a kind that is not known.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("edits")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UnreadableFile(f"{path} is no safetensors file: {error}") from error
    if header is None:
        raise UnreadableFile(f"{path} holds no edits of a model")
    found = []
    for place, entry in enumerate(json.loads(header)):
        kind = OURS.get(entry["kind"]) or ModelEdit.kinds.get(entry["kind"])  # or a plug-in's own
        if kind is None:
            raise ResurgeError(
                f"unknown kind of edit {entry['kind']!r}; it was made by another version"
            )
        prefix = f"{place}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        found.append(kind.load(own, entry["config"]))
    return tuple(found)
