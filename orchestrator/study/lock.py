"""One process owns a study at a time; another that wants it is told who does.

Claims are attributes of the study itself, so it does not matter where the others run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import optuna

from orchestrator.core.claims import Claims, beating
from orchestrator.core.errors import ResurgeError
from orchestrator.core.liveness import SILENT_S, Process, Sign, Verdict, Watch
from orchestrator.study.storage import open_storage, shown_url, unusable, using

PREFIX = "resurge.owner."
LOOK_AGAIN_S = 1.0


class StudyLock(Claims):
    """Studies that this process owns until it releases them.

    Args:
        storage: a database URL, or journal:///path.
        names: studies that are there.
        watch: judges the other owners.
        now_s: the time of day.
    """

    def __init__(
        self,
        storage: str,
        names: Sequence[str],
        watch: Watch | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(watch, now_s)
        self.url = storage
        try:
            place = open_storage(storage)
            self._studies = {n: optuna.load_study(study_name=n, storage=place) for n in names}
        except Exception as error:
            raise unusable(storage, error) from error

    def claim(self) -> dict[Process, Verdict]:
        """Own the studies, unless others do or may: those others, and then nothing is claimed."""
        return self._take(list(self._studies))

    def beat(self) -> None:
        """Show that this process is alive.

        Raises:
            ResurgeError: another process took a study over, because this one seemed dead.
        """
        key = PREFIX + self.process.id
        if any(study.user_attrs.get(key) is None for study in self._studies.values()):
            raise ResurgeError(
                "another process has taken this search over, because this one was not heard of "
                f"for {SILENT_S:.0f} s. This one stops; nothing is lost, the other one goes on"
            )
        self._beat += 1
        self._write(self._studies)

    def release(self) -> None:
        """Own them no more."""
        self._remove(self._studies, self.process.id)

    def _write(self, things: Iterable[str]) -> None:
        claim = Sign(self.process, self._beat, self._now_s()).to_json()
        for name in things:
            self._studies[name].set_user_attr(PREFIX + self.process.id, claim)

    def _remove(self, things: Iterable[str], owner: str) -> None:
        for name in things:
            self._studies[name].set_user_attr(PREFIX + owner, None)

    def _claimed(self, things: Iterable[str]) -> Mapping[str, Sign | None]:
        return {
            key.removeprefix(PREFIX): Sign(Process.from_json(claim), claim["beat"], claim["at_s"])
            for name in things
            for key, claim in self._studies[name].user_attrs.items()
            if key.startswith(PREFIX) and claim is not None
        }


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
    lost: list[Exception] = []

    def beat() -> None:
        try:
            if not lost:
                lock.beat()
        except Exception as error:  # whatever the database's driver raises; told by `check`
            lost.append(error)

    def check() -> None:
        if lost:
            raise unusable(lock.url, lost[0])

    try:
        with beating(beat):
            yield check
    finally:
        if not lost:
            with using(lock.url):
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
