"""MLflow kept up to date from a thread of its own while a sweep runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from orchestrator.tracking.connection import first_line
from orchestrator.tracking.mlflow import Counts, Tracker
from orchestrator.tracking.run import View

MAX_PAUSE_S = 60.0
ATTEMPTS_AT_CLOSE = 3


class BackgroundTracker:
    """Keeps MLflow up to date from a thread of its own while a sweep runs.

    What takes long to make is written once, at the end. Nothing that MLflow does reaches the
    caller: an error is kept in `last_error` and tried again, less and less often. The store has
    everything, so `sync` can always mend it later. `shown` is how many runs MLflow has.
    """

    def __init__(
        self, view: View, uri: str, artifact_root: Path | None = None, every_s: float = 3.0
    ) -> None:
        self.last_error: str | None = None
        self.shown = 0
        self._view: Final = view
        self._every_s: Final = every_s
        self._tracker: Final = Tracker(uri, artifact_root)
        self._due = threading.Event()
        self._closing = threading.Event()
        self._is_current = False
        self._thread = threading.Thread(target=self._work, name="resurge-tracking", daemon=True)
        self._thread.start()
        self.notify()

    def notify(self) -> None:
        """Something was committed or failed. Returns at once."""
        self._due.set()

    def close(self, timeout_s: float) -> bool:
        """Write what is left once nothing commits any more; whether MLflow is up to date."""
        self._closing.set()
        self._due.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self.last_error is None:
            self.last_error = f"MLflow took more than {timeout_s:g} s"
        return self._is_current and not self._thread.is_alive()

    def _work(self) -> None:
        pause_s = self._every_s
        while not self._closing.is_set():
            self._due.wait()
            if self._closing.is_set():
                break
            self._due.clear()
            if self._attempt(with_files=False) is not None:
                pause_s = self._every_s
            else:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                self._due.set()
            self._closing.wait(pause_s)
        for _ in range(ATTEMPTS_AT_CLOSE):
            if (counts := self._attempt(with_files=True)) is not None:
                self._is_current = not counts.refused
                self.shown = counts.shown
                return

    def _attempt(self, with_files: bool) -> Counts | None:
        """None if MLflow could not be written at all."""
        try:
            counts = self._tracker.sync(self._view, with_files)
        except Exception as error:
            # A database that is locked, a server that is away, a store that is slow: none of them
            # may stop the sweep. The error is shown at the end and the sync can be repeated.
            self.last_error = first_line(error)
            self._tracker.forget()
            return None
        self.last_error = counts.problem
        return counts
