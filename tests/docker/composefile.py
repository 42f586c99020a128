"""docker/compose.yaml as compose reads it: merge keys applied, ${NAME:-default} filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DOCKER = Path(__file__).parents[2] / "docker"
Settings = dict[str, Any]


def load(name: str = "compose.yaml", **environment: str) -> Settings:
    """The file's content, with defaults unless `environment` names a value."""
    text = (DOCKER / name).read_text()
    filled = re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1], found[2]), text
    )
    return YAML(typ="safe", pure=True).load(filled)


def secret_files(service: Settings, folder: Path) -> dict[str, Path]:
    """Where each of a service's secrets is in the container, and the file that it is."""
    declared = load()["secrets"]
    return {
        f"/run/secrets/{name}": folder / declared[name]["file"]
        for name in service.get("secrets", ())
    }
