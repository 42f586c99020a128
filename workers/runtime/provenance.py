"""Where and with what a stage was computed: recorded, never hashed."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from functools import cache

import torch

from orchestrator.core.artifacts import Provenance

_PACKAGES = ("resurge", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


@cache
def provenance(device: str) -> Provenance:
    """Host, device, threads, versions and the working directory's git commit, as JSON values."""
    versions: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "git_sha": _git_sha(),
    }


def _git_sha() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
