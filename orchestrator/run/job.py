"""A job: a sweep, its plan, and the places that it works in."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from orchestrator.core.text import LONGEST_TEXT, shortened
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.store import Store
from orchestrator.sweep.space import Point
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import NAME, load, parse

if TYPE_CHECKING:
    from orchestrator.study.points import PointPlanner
    from orchestrator.study.tried import Tried
    from orchestrator.study.worst_case import WorstCase


class Job:
    """A sweep as a command works on it, opened once and handed on.

    Everything is looked up when it is first asked for, and then kept: of a cluster that is seen
    from another machine, no more is asked than the command needs. `points` and `studies` are a
    search's.

    Args:
        sweep: what is run.
        home: where it keeps its files.
        opened: a store that is open already, for the case that it is the sweep's.
    """

    def __init__(self, sweep: Sweep, home: Home, opened: Store | None = None) -> None:
        self.sweep = sweep
        self.home = home
        self._opened = opened

    @cached_property
    def store(self) -> Store:
        """Where its results are."""
        location = self.home.store_location(self.sweep)
        if self._opened is not None and self._opened.location == location:
            return self._opened
        return Store(location)

    @cached_property
    def plan(self) -> Plan:
        """Its trials and stages; a search's are those that it has asked for."""
        if self.sweep.search is None:
            return make_plan(self.sweep)
        from orchestrator.study.worst_case import asked_plan

        return asked_plan(self.points, self.studies)

    @cached_property
    def points(self) -> PointPlanner:
        """What plans the points of its search."""
        from orchestrator.study.points import PointPlanner

        return PointPlanner(self.sweep)

    @cached_property
    def studies(self) -> list[tuple[str, Point, list[Tried]]]:
        """By study its name, what it holds fixed, and its trials."""
        from orchestrator.study.studies import read_studies

        return read_studies(self.points, self.studies_uri)

    @cached_property
    def studies_uri(self) -> str:
        """The database of its studies."""
        return self.home.studies_uri(self.sweep)

    @cached_property
    def mlflow_uri(self) -> str:
        """MLflow's database or server."""
        return self.home.mlflow_uri(self.sweep)

    @property
    def log_folder(self) -> Path:
        """Its tasks' logs."""
        return self.home.logs(self.sweep.name)

    def now(self) -> Job:
        """The same job with what its search has asked for since."""
        again = copy.copy(self)
        if self.sweep.search is not None:
            for name in ("studies", "plan"):
                again.__dict__.pop(name, None)
        return again

    def remember(self) -> None:
        """From now on its store knows the sweep by name."""
        values = {"sweep": self.sweep.canonical(), "source": self.sweep.source}
        self.store.put_sweep(self.sweep.name, values)

    def done(self) -> set[str]:
        """Keys of the plan's stages that have a record.

        Raises:
            StoreError: a record was made with a default that has moved since.
        """
        keys = self.store.keys()
        return {s.key for s in self.plan.stages if s.key in keys and self.store.get(s)}

    def worst_cases(self) -> list[WorstCase]:
        """What its search has found, by study."""
        from orchestrator.study.worst_case import worst_cases

        return worst_cases(self.points, self.studies, self.store)


def is_file(sweep: str) -> bool:
    """Whether a file is meant, and not the name of a sweep; a folder may be called like one."""
    is_there = os.path.exists(sweep) and not os.path.isdir(sweep)
    return is_there or Path(sweep).suffix in (".yaml", ".yml")


def open_job(sweep: str, overrides: Iterable[str], home: Home, opened: Store | None = None) -> Job:
    """The job of a sweep file, or of a sweep's name as it was last run.

    Raises:
        ResurgeError: the file is wrong, or the home's store knows no sweep of that name.
    """
    if is_file(sweep):
        given = load(Path(sweep), tuple(overrides))
        home.check(given)
        return Job(given, home, opened)
    store = opened or Store(home.store_location())
    known = store.sweep(sweep) if NAME.fullmatch(sweep) else None
    if known is None:
        names = store.sweeps()
        hint = suggest(sweep, names) if names else "; none has been run yet"
        folder = " (a folder is)" if os.path.isdir(sweep) else ""
        what = "no sweep file and no known sweep is called"
        raise ResurgeError(f"{what} {shortened(sweep, LONGEST_TEXT)!r}{folder}{hint}")
    found = parse(json.dumps(known["sweep"]), None, tuple(overrides))
    home.check(found)
    return Job(dataclasses.replace(found, source=known["source"]), home, store)
