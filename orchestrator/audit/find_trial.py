"""A trial by what a person has in hand: an MLflow run's id, or the first digits of its digest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.plan.labels import trial_label
from orchestrator.plan.plan import PlannedTrial
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.run.job import Job, open_results
from orchestrator.store.store import Store

MIN_DIGITS = 6
RUN_ID = re.compile(r"[0-9a-f]{32}")
DIGITS = re.compile(rf"[0-9a-f]{{{MIN_DIGITS},64}}")


@dataclass(frozen=True)
class Found:
    """A trial in a sweep that was run, and its numbers."""

    job: Job
    planned: PlannedTrial
    reader: TrialReader

    @property
    def measured(self) -> Measured:
        """As far as the store has them."""
        return self.reader.measure(self.planned)

    @property
    def label(self) -> str:
        """The sweep, the trial's key, and what sets it apart."""
        what = trial_label(self.job.plan, self.planned)
        return f"{self.job.plan.name} {self.planned.key} ({what})"


def find_trial(name: str, home: Home) -> Found:
    """The trial that `name` means.

    Raises:
        ResurgeError: no trial or several are meant, or the name is neither kind.
    """
    wanted = _digest_of_run(name, home) if RUN_ID.fullmatch(name) else name
    if not DIGITS.fullmatch(wanted):
        raise ResurgeError(
            f"a trial is named by an MLflow run's id (32 hex digits) or by {MIN_DIGITS} or more "
            f"digits of its digest but got {name!r}; `resurge export` writes a column `trial`"
        )
    found: dict[str, Found] = {}
    unread: list[str] = []
    store = Store(home.store_location())
    for sweep in store.sweeps():
        try:
            job = open_results(sweep, home, store)
            reader = TrialReader(job.plan, job.store)
        except ResurgeError as error:  # another sweep's trouble
            unread.append(f"{sweep}: {' '.join(str(error).split())}")
            continue
        for planned in job.plan.trials:
            if planned.digest.startswith(wanted):
                found[planned.digest] = Found(job, planned, reader)
    if not found:
        beside = f"; what these have is not known: {'; '.join(unread)}" if unread else ""
        what = f"no trial of a sweep that was run on this store is called {name!r}{beside}"
        raise ResurgeError(what)
    if len(found) > 1:
        keys = ", ".join(sorted(digest[:16] for digest in found))
        raise ResurgeError(f"{name!r} means several trials ({keys}); give more digits")
    return next(iter(found.values()))


def _digest_of_run(run_id: str, home: Home) -> str:
    """The trial behind an MLflow run; the name itself if MLflow knows no such run."""
    from orchestrator.tracking.connection import tags_of

    tags = tags_of(run_id, home.mlflow_uri())
    if tags is None:
        return run_id  # 32 digits of a digest look the same
    if "resurge.trial" not in tags:
        raise ResurgeError(
            f"MLflow run {run_id} is no trial's (it may be a sweep's, a study's or a "
            "trajectory's); choose a run with the tag resurge.trial"
        )
    return tags["resurge.trial"]
