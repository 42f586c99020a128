"""What an exception is taken for."""

from __future__ import annotations

import errno

import pytest
import torch

from orchestrator.core.errors import CorruptObject, ResurgeError, StoreError, StoreUnavailable
from workers.runtime.causes import cause_of, message_of


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def while_handling(error: Exception, context: Exception, is_hidden: bool = False) -> Exception:
    error.__context__, error.__suppress_context__ = context, is_hidden
    return error


def of_too_large_a_tensor() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    return caught.value


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (MemoryError(), "oom"),
        (of_too_large_a_tensor(), "oom"),
        (raised_from(ResurgeError("the attack failed"), MemoryError()), "oom"),
        (FloatingPointError("the loss is nan at step 3"), "nan"),
        (StoreUnavailable("s3://bucket cannot be reached"), "storage"),
        (CorruptObject("damaged", "0" * 64), "storage"),
        (FULL, "storage"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "storage"),
        (ValueError("I/O error: No space left on device (os error 28)"), "storage"),
        (while_handling(KeyError("x"), FULL), "storage"),
        (while_handling(KeyError("x"), FULL, is_hidden=True), "bug"),
        (OSError(errno.ENOENT, "No such file"), "bug"),
        (StoreError("a default has moved"), "input"),
        (ResurgeError("out of memory of the past"), "input"),
        (ZeroDivisionError(), "bug"),
    ],
)
def test_the_cause_of_an_exception(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_an_exception_that_led_to_itself_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    assert cause_of(one) == "bug"


def test_our_own_errors_are_shown_as_they_are_and_others_with_their_class() -> None:
    assert message_of(ResurgeError("lower k")) == "lower k"
    assert message_of(FloatingPointError("the loss is nan")) == "the loss is nan"
    assert message_of(KeyError("unet")) == "KeyError('unet')"
