"""A model or data set that is a folder, or a repository at a commit."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import ResurgeError

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A model's folder, or a repository (owner/name) at a commit."""

    name: str
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The folder, if it is one."""
        return Path(self.name).expanduser()

    def digest(self) -> str:
        """sha256 of a folder's names and contents, or the repository at its commit."""
        return digest_of(self.path) if self.path.is_dir() else f"{self.name}@{self.revision}"

    def config(self) -> dict[str, Any] | None:
        """A folder's config.json; None of a repository, which planning does not ask."""
        file = self.path / "config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is called with."""
        where = str(self.path) if self.path.is_dir() else self.name
        return {"pretrained_model_name_or_path": where, "revision": self.revision}


def load_part(kind: Any, source: Source, **options: Any) -> Any:
    """`kind.from_pretrained` of a source, quiet.

    Raises:
        ResurgeError: it is not there, of another kind, or without safetensors.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a worker's log is read later
    try:
        return kind.from_pretrained(**source.options(), **options)
    except Exception as error:  # the readers raise whatever they trip over
        raise ResurgeError(
            f"cannot load {kind.__name__} from {source.name!r}"
            f"{f' at {source.revision}' if source.revision else ''}: {_sentence(error)}; it must "
            "be a model of transformers with its weights in safetensors"
        ) from error


def load_model(kind: Any, source: Source) -> Any:
    """A model to be asked only: fp32, in evaluation mode, on the GPU if there is one."""
    import torch

    model = load_part(kind, source, use_safetensors=True).float().eval().requires_grad_(False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or repr(error)).rstrip(".")


def digest_of(root: Path) -> str:
    """sha256 of names and contents: all of a folder's files, or one file."""
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else ""
        total.update(f"{name}\0{_sha256(file)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
