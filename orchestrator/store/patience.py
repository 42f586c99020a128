"""Patience with a store: what may pass is tried again, what will not is one clear error at once."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.core.errors import StoreError, StoreUnavailable

T = TypeVar("T")
VARIABLE = "RESURGE_STORE_PATIENCE_S"
LIMIT_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = _FULL | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}

# How pyarrow words what a bucket answers.
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_PASSING_AWS = {
    "INTERNAL_FAILURE",
    "NETWORK_CONNECTION",
    "REQUEST_TIMEOUT",
    "SERVICE_UNAVAILABLE",
    "SLOW_DOWN",
    "THROTTLING",
}

_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
_BAD_CERTIFICATE = re.compile(r"curlCode: (35|51|58|60|77)\b")
log = logging.getLogger("resurge.store")


class Patience:
    """How long to try again, in seconds; the clock, the sleep and the chance can be given.

    Args:
        limit_s: the longest time from the first failure of a call; RESURGE_STORE_PATIENCE_S, else
            ten minutes.

    Raises:
        StoreError: RESURGE_STORE_PATIENCE_S is not a number of seconds.
    """

    def __init__(
        self,
        limit_s: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.limit_s = _limit_s() if limit_s is None else limit_s
        self._sleep = sleep
        self._clock = clock
        self._chance = chance

    def call(self, doing: str, work: Callable[[], T]) -> T:
        """What `work` returns; it must do no harm when it is done twice.

        Args:
            doing: what is done with what, for errors: "write s3://bucket/x".

        Raises:
            FileNotFoundError: as `work` raised it; whoever asks knows what absence means.
            StoreUnavailable: it failed for longer than the limit.
            StoreError: it failed in a way that does not pass by itself.
        """
        begun_s: float | None = None
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return work()
            except FileNotFoundError:
                raise
            except OSError as error:
                if "AWS Error NO_SUCH_KEY" in str(error):
                    raise FileNotFoundError(errno.ENOENT, str(error)) from error
                if not is_passing(error):
                    raise StoreError(
                        f"cannot {doing}: {_words(error)}. {_advice(error)}"
                    ) from error
                now_s = self._clock()
                if begun_s is None:
                    begun_s = now_s
                    log.warning(
                        "cannot %s: %s; trying again for %g s", doing, _words(error), self.limit_s
                    )
                left_s = begun_s + self.limit_s - now_s
                if left_s <= 0:
                    raise StoreUnavailable(
                        f"could not {doing} for {self.limit_s:g} s: {_words(error)}. "
                        f"{_advice(error)}, or be more patient: {VARIABLE}=3600"
                    ) from error
            # Many workers that met the same trouble do not come back at the same moment.
            self._sleep(min(left_s, wait_s * (0.5 + self._chance() / 2)))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _limit_s() -> float:
    text = os.environ.get(VARIABLE)
    if not text:
        return LIMIT_S
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = -1.0
    if not 0 <= limit_s < float("inf"):
        raise StoreError(f"{VARIABLE} must be a number of seconds from 0 on, but got {text!r}")
    return limit_s


def is_passing(error: OSError) -> bool:
    """Whether the same call may succeed later."""
    if error.errno is not None:
        return error.errno in _PASSING
    found = _AWS_ERROR.search(str(error))
    if found is None or _BAD_CERTIFICATE.search(str(error)):
        return False
    name, status = found.groups()
    return name in _PASSING_AWS or (status is not None and int(status) in _PASSING_STATUS)


def _words(error: OSError) -> str:
    return (error.strerror if error.errno is not None else None) or str(error)


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "Free space on that disk; `resurge store gc` shows what the store can spare"
    if isinstance(error, PermissionError):
        return "Check the owner and the mode of that folder"
    if error.errno is not None:
        return "Check that disk or its mount"
    text = str(error)
    if "NO_SUCH_BUCKET" in text:
        return "Make the bucket first; Resurge never makes one"
    if _BAD_CERTIFICATE.search(text):
        return "Check the endpoint's certificate; AWS_CA_BUNDLE names another authority's file"
    if "NETWORK_CONNECTION" in text:
        return "Check the network, and AWS_ENDPOINT_URL_S3"
    if re.search(r"HTTP status 30\d", text):
        return "The bucket is in another region: set AWS_REGION"
    if is_passing(error):
        return "The server is in trouble: look at its own log"
    return (
        "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and what they are "
        "allowed to do with that bucket"
    )
