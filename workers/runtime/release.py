"""Memory given back to the system between pieces of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc

import torch


def give_back() -> None:
    """Return freed memory to the system and to the GPU's other workers: glibc and torch keep what a
    training's many tensors took, and workers live long. The host's stays on systems without glibc.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
