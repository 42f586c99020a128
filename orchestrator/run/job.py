"""A job: a sweep, its plan, and the places that it works in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.store import Store
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import load, parse

if TYPE_CHECKING:
    from orchestrator.tracking.run import View


@dataclass(frozen=True)
class Job:
    """A sweep with its plan and the places that it works in."""

    sweep: Sweep
    plan: Plan
    store: Store
    home: Home

    @classmethod
    def of(cls, sweep: Sweep, home: Home) -> Job:
        """Plan a sweep; a search's plan is what it has asked for so far."""
        if sweep.search is None:
            plan = make_plan(sweep)
        else:
            from orchestrator.study.studies import plan_of

            plan = plan_of(sweep, home)
        return cls(sweep, plan, Store(home.store_location(sweep)), home)

    def now(self) -> Job:
        """The same job with what a search has asked for since."""
        return self if self.sweep.search is None else Job.of(self.sweep, self.home)

    def view(self) -> View:
        """What MLflow should show of it."""
        if self.sweep.search is None:
            from orchestrator.tracking.sweep_runs import SweepView

            return SweepView(self.plan, self.store, self.sweep.source)
        from orchestrator.tracking.search_runs import StudyView

        return StudyView(self.sweep, self.home)

    def done(self) -> set[str]:
        """Keys of the plan's stages that have a record.

        Raises:
            StoreError: a record was made with a default that has moved since.
        """
        keys = self.store.keys()
        return {s.key for s in self.plan.stages if s.key in keys and self.store.get(s)}


def open_job(sweep: str, overrides: Iterable[str], home: Home) -> Job:
    """The job of a sweep file, or of a sweep's name as it was last run."""
    return Job.of(open_sweep(sweep, overrides, home), home)


def open_sweep(sweep: str, overrides: Iterable[str], home: Home) -> Sweep:
    """The sweep of a file, or of a name as it was last run."""
    if Path(sweep).suffix in (".yaml", ".yml") or Path(sweep).exists():
        return load(Path(sweep), tuple(overrides))
    store = Store(home.store_location())
    known = store.sweep(sweep)
    if known is None:
        names = store.sweeps()
        hint = suggest(sweep, names) if names else "; none has been run yet"
        raise ResurgeError(f"no sweep file and no known sweep is called {sweep!r}{hint}")
    found = parse(json.dumps(known["sweep"]), None, tuple(overrides))
    return dataclasses.replace(found, source=known["source"])
