"""What processes call themselves."""

from __future__ import annotations

import psutil


def title(process: psutil.Process) -> str:
    """A process's command line; nothing if it has ended since it was listed."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
