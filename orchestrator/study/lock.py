"""One process owns a study at a time; another that wants it is told who does.

Claims are attributes of the study itself, so it does not matter where the others run. Who wants a
study writes a claim first and looks for others' then: of two that come at once at most one finds
itself alone. What a dead process claimed is taken over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna

from orchestrator.core.errors import ResurgeError
from orchestrator.core.liveness import BEAT_S, SILENT_S, Process, Verdict, Watch
from orchestrator.study.storage import open_storage, shown_url, unusable

PREFIX = "resurge.owner."
LOOK_AGAIN_S = 1.0


class StudyLock:
    """Studies that this process owns until it releases them.

    Args:
        storage: a database URL, or journal:///path.
        names: studies that are there.
        watch: judges the other owners.
    """

    def __init__(self, storage: str, names: Sequence[str], watch: Watch | None = None) -> None:
        self.process = Process.here()
        self.url = storage
        self._watch = watch or Watch()
        self._beat = 0
        self._key = PREFIX + self.process.id
        try:
            place = open_storage(storage)
            self._studies = [optuna.load_study(study_name=n, storage=place) for n in names]
        except Exception as error:
            raise unusable(storage, error) from error

    def claim(self) -> dict[Process, Verdict]:
        """Own the studies, unless others do or may: those others, and then nothing is claimed."""
        self._write(self._claim())
        others = self._others()
        if others:
            self.release()
        return others

    def beat(self) -> None:
        """Show that this process is alive.

        Raises:
            ResurgeError: another process took a study over, because this one seemed dead.
        """
        if any(study.user_attrs.get(self._key) is None for study in self._studies):
            raise ResurgeError(
                "another process has taken this search over, because this one was not heard of "
                f"for {SILENT_S:.0f} s. This one stops; nothing is lost, the other one goes on"
            )
        self._beat += 1
        self._write(self._claim())

    def release(self) -> None:
        """Own them no more."""
        self._write(None)

    def _claim(self) -> dict[str, Any]:
        return {**self.process.to_json(), "beat": self._beat, "at_s": time.time()}

    def _write(self, claim: dict[str, Any] | None, key: str | None = None) -> None:
        for study in self._studies:
            study.set_user_attr(key or self._key, claim)

    def _others(self) -> dict[Process, Verdict]:
        """Owners that are not dead; a dead one's claim is removed."""
        claims: dict[str, dict[str, Any]] = {}
        for study in self._studies:
            for key, claim in study.user_attrs.items():
                if key.startswith(PREFIX) and key != self._key and claim is not None:
                    claims[key] = claim
        found: dict[Process, Verdict] = {}
        for key, claim in claims.items():
            process = Process.from_json(claim)
            verdict = self._watch.look(process, claim["beat"], claim["at_s"])
            if verdict == "dead":
                self._write(None, key)
            else:
                found[process] = verdict
        return found


@contextmanager
def owned(
    lock: StudyLock, say: Callable[[str], None], wait_s: Callable[[float], object] = time.sleep
) -> Iterator[Callable[[], None]]:
    """Inside, this process owns the studies and shows that it is alive.

    What it gives is to be called now and then: it raises ResurgeError once the studies are lost. An
    owner on another machine that may be dead is watched for a minute first; `say` tells of it.

    Raises:
        ResurgeError: a live process owns one of the studies.
    """
    _acquire(lock, say, wait_s)
    stop, lost = threading.Event(), []

    def beat() -> None:
        while not stop.wait(BEAT_S):
            try:
                lock.beat()
            except Exception as error:  # whatever the database's driver raises; told by `check`
                lost.append(error)
                return

    def check() -> None:
        if lost:
            raise unusable(lock.url, lost[0])

    beating = threading.Thread(target=beat, name="resurge-study-lock", daemon=True)
    beating.start()
    try:
        yield check
    finally:
        stop.set()
        beating.join()
        if not lost:
            lock.release()


def _acquire(
    lock: StudyLock, say: Callable[[str], None], wait_s: Callable[[float], object]
) -> None:
    is_told = False
    while others := lock.claim():
        for process, verdict in others.items():
            if verdict == "alive":
                raise ResurgeError(
                    f"{process} runs this search already (studies at {shown_url(lock.url)}), and a "
                    "study has one owner at a time. Wait for it or stop it; `resurge status` shows "
                    "how far it is. To search something else meanwhile, give the sweep another name"
                )
        if not is_told:
            names = ", ".join(map(str, others))
            say(f"{names} owned this search last; looking for {SILENT_S:.0f} s whether it is alive")
            is_told = True
        wait_s(LOOK_AGAIN_S)
