"""A model or data set that is a folder or file, or a repository at a commit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.core.errors import DataError
from workers.data.files import digest_of, marks_of, place

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
CONFIG = "config.json"
Fault = Literal["revision of what is here", "no repository", "no commit"]


@dataclass(frozen=True)
class Source:
    """A folder, where that is allowed a file, or a repository (owner/name) at a commit."""

    name: str
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The folder or file, if it is one."""
        return place(self.name)

    @property
    def where(self) -> str:
        """What readers are given: the folder's path, or the repository's name."""
        return str(self.path) if self.path.is_dir() else self.name

    def fault(self, or_file: bool = False) -> Fault | None:
        """What keeps it from naming the same bytes for ever; None if nothing does.

        A branch and a tag move, so a repository needs a commit; a folder or file has none.
        """
        if self.path.exists() if or_file else self.path.is_dir():
            return None if self.revision is None else "revision of what is here"
        if not REPOSITORY.fullmatch(self.name):
            return "no repository"
        return None if COMMIT.fullmatch(self.revision or "") else "no commit"

    @property
    def got(self) -> str:
        """How to end a sentence that asks for a commit: "…, but" this."""
        return f"got {self.revision!r}" if self.revision else "has none"

    @property
    def title(self) -> str:
        """As people know it: its name, and the beginning of its commit."""
        return f"{self.name}@{self.revision[:7]}" if self.revision else self.name

    def digest(self) -> str:
        """sha256 of a folder's names and contents, or the repository at its commit."""
        return digest_of(self.path) if self.path.is_dir() else f"{self.name}@{self.revision}"

    def marks(self) -> tuple[object, ...]:
        """What tells a folder's files from what they were, without reading them."""
        return marks_of(self.path) if self.path.is_dir() else ()

    def config(self) -> dict[str, Any] | None:
        """A folder's config.json; None of a repository.

        Raises:
            DataError: it cannot be read, or is no JSON object.
        """
        file = self.path / CONFIG
        return read_config(file) if file.is_file() else None

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is called with."""
        return {"pretrained_model_name_or_path": self.where, "revision": self.revision}


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        DataError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file}: {error}; take the whole model") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} must hold a JSON object but holds {type(found).__name__}")
    return found


def sentence(error: Exception) -> str:
    """What a reader says, as one line without its last full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[:2]) or repr(error)).rstrip(".")
