"""When training tells how far it is, when its state is saved, and when a worker leaves its work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SIGN_EVERY_S = 30.0
"""A training tells its loss at least so often, however slow its steps are."""


class Leaving(BaseException):
    """The worker was asked to leave and has let go of its stage.

    Like KeyboardInterrupt no Exception, so that a plug-in that catches those does not hold it up.
    """


class Every:
    """Something to be done every so many seconds. Asks no device: it can be asked at every step."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.every_s, self._clock = every_s, clock
        self._done_s = clock()

    def is_due(self) -> bool:
        """Whether the time has passed since it was done."""
        return self._clock() - self._done_s >= self.every_s

    def done(self) -> None:
        """It was done now."""
        self._done_s = self._clock()


class Pace(Every):
    """How often a task's training state is saved; at once if the worker was asked to leave.

    Args:
        every_s: the longest time between two saves, in seconds.
        leaving: set when the worker is to leave.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        every_s: float,
        leaving: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(every_s, clock)
        self._leaving = leaving or threading.Event()

    def is_due(self) -> bool:
        """Whether to save now."""
        return self._leaving.is_set() or super().is_due()

    def leave_if_asked(self) -> None:
        """Where work can be left.

        Raises:
            Leaving: the worker was asked to leave.
        """
        if self._leaving.is_set():
            raise Leaving
