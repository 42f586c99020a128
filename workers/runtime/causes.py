"""Why a stage failed: whose fault an exception is decides what is done about it."""

from __future__ import annotations

import errno

import torch

from orchestrator.core.artifacts import Cause
from orchestrator.core.errors import CorruptObject, ResurgeError, StoreUnavailable

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE = ("No space left", "Disk quota exceeded")


class FailedElsewhere(RuntimeError):
    """A process that works for this one failed; `cause` is what its own error was."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


def cause_of(error: BaseException) -> Cause:
    """The cause that the exception, or else the nearest one that led to it, speaks of."""
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        if found := _own_cause(at):
            return found
        seen.add(id(at))
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "input" if isinstance(error, ResurgeError) else "bug"


def message_of(error: BaseException) -> str:
    """What to show of an exception: our own errors and those of the numbers are sentences."""
    if isinstance(error, SystemExit):
        return f"the code of this stage called sys.exit: {error.code}"
    sentences = ResurgeError | FloatingPointError | FailedElsewhere
    is_sentence = isinstance(error, sentences) and str(error)
    return str(error) if is_sentence else repr(error)


def _own_cause(error: BaseException) -> Cause | None:
    if isinstance(error, FailedElsewhere):
        return error.cause
    text = str(error)
    # CUDA's and the CPU allocator's are both RuntimeErrors; some have no class of their own.
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY):
        return "oom"
    if isinstance(error, FloatingPointError):
        return "nan"
    if isinstance(error, StoreUnavailable | CorruptObject):
        return "storage"
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return "storage"
    # Libraries written in other languages (safetensors, Arrow) pass on the words alone.
    return "storage" if any(words in text for words in _NO_SPACE) else None
