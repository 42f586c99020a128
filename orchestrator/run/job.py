"""A job: a sweep, its plan, and the places that it works in."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import DamagedDocument, Problem, ResurgeError, SweepError
from orchestrator.core.hints import suggest
from orchestrator.core.redact import redact
from orchestrator.core.text import LONGEST_TEXT, shortened
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.stored import StoredSweep, UnreadablePlan, changes
from orchestrator.store.store import Store
from orchestrator.sweep.space import Point
from orchestrator.sweep.sweep import Reference, Sweep
from orchestrator.sweepfile.load import NAME, load, parse

if TYPE_CHECKING:
    from orchestrator.study.points import PointPlanner, Points
    from orchestrator.study.tried import Tried
    from orchestrator.study.worst_case import WorstCase


class Job:
    """A sweep as a command works on it, opened once and handed on.

    Everything is looked up when it is first asked for, and then kept: of a cluster that is seen
    from another machine, no more is asked than the command needs. `points` and `studies` are a
    search's.

    Args:
        sweep: what is run; or what was, of which nothing is planned again.
        home: where it keeps its files.
        opened: a store that is open already, for the case that it is the sweep's.
        remark: what whoever reads its results should know first.
    """

    def __init__(
        self,
        sweep: Sweep | StoredSweep,
        home: Home,
        opened: Store | None = None,
        remark: str | None = None,
    ) -> None:
        self._given = sweep
        self.name = sweep.name
        self.recorded = sweep.recorded
        self.home = home
        self._opened = opened
        self._remark = remark

    @cached_property
    def sweep(self) -> Sweep:
        """The sweep itself.

        Raises:
            SweepError: it was run before, and what it names is not here now.
        """
        given = self._given
        return _read_again(given) if isinstance(given, StoredSweep) else given

    @property
    def search_block(self) -> Mapping[str, Any] | None:
        """What its file says under `search`, if it does."""
        given = self._given
        if isinstance(given, StoredSweep):
            return given.search_block
        return given.search.canonical() if given.search else None

    @property
    def reference(self) -> Reference | None:
        """The published numbers that its file gives, if it does."""
        given = self._given
        if not isinstance(given, StoredSweep):
            return given.reference
        values = given.values.get("reference")
        return Reference(values["source"], tuple(values["rows"])) if values else None

    @property
    def is_search(self) -> bool:
        """Whether it has a `search` block."""
        return self.search_block is not None

    @cached_property
    def store(self) -> Store:
        """Where its results are."""
        location = self.home.store_location(self._given)
        if self._opened is not None and self._opened.location == location:
            return self._opened.packed()
        return Store(location).packed()

    @cached_property
    def plan(self) -> Plan:
        """Its trials and stages, of a stored sweep as it was run; a search's are those that it
        has asked for.
        """
        if self.is_search:
            from orchestrator.study.worst_case import asked_plan

            return asked_plan(self.points, self.studies)
        return self._stored_plan or make_plan(self.sweep)

    @cached_property
    def _stored_plan(self) -> Plan | None:
        """None if there is none that can be read: then what is there now is planned."""
        given = self._given
        try:
            return given.read_plan() if isinstance(given, StoredSweep) else None
        except UnreadablePlan as error:
            why = f"of sweep {self.name!r} {error}: what follows is of its inputs as they are now"
            self._remark = why
            return None

    def remarks(self) -> Iterator[str]:
        """What whoever reads its results should know: what is not as it was when it was run."""
        plan = self._stored_plan
        if self._remark is not None:
            yield self._remark
        # The inputs of a cluster's sweeps are on the cluster.
        if plan is not None and self.home.cluster is None:
            for change in changes(plan):
                yield f"{change}; what follows is of the inputs as they were when it was run"

    @cached_property
    def planner(self) -> PointPlanner:
        """What plans the points of its search."""
        from orchestrator.study.points import PointPlanner

        return PointPlanner(self.sweep)

    @cached_property
    def points(self) -> Points:
        """The points of its search; of a stored one as they were kept, where they could not be
        planned again.
        """
        return self._stored_points or self.planner

    @cached_property
    def _stored_points(self) -> Points | None:
        """None where everything is as it was when it was run: a search goes on while it is read."""
        from orchestrator.study.stored_points import StoredPoints

        given, plan = self._given, self._stored_plan
        if not isinstance(given, StoredSweep) or given.points is None or plan is None:
            return None
        try:
            _ = self.sweep
            is_as_it_was = not any(changes(plan))
        except SweepError:
            is_as_it_was = False
        try:
            return None if is_as_it_was else StoredPoints(plan, given.points)
        except UnreadablePlan as error:
            self._remark = f"of sweep {self.name!r} {error}"
            return None

    @cached_property
    def studies(self) -> list[tuple[str, Point, list[Tried]]]:
        """By study its name, what it holds fixed, and its trials."""
        from orchestrator.study.studies import read_studies

        return read_studies(self.points, self.studies_uri)

    @cached_property
    def studies_uri(self) -> str:
        """The database of its studies."""
        return self.home.studies_uri(self._given)

    @cached_property
    def mlflow_uri(self) -> str:
        """MLflow's database or server."""
        return self.home.mlflow_uri(self._given)

    @property
    def log_folder(self) -> Path:
        """Its tasks' logs."""
        return self.home.logs(self.name)

    def now(self) -> Job:
        """The same job with what its search has asked for since."""
        again = copy.copy(self)
        if self.is_search:
            for name in ("studies", "plan"):
                again.__dict__.pop(name, None)
        return again

    def command(self, words: str) -> str:
        """`resurge …` as it can be typed: with the places that it would not find by itself."""
        usual, home = Home.find(None), self.home
        places = {"STORE": (self.store.location, home.store_location())}
        if self.sweep.mlflow:
            places["MLFLOW"] = (self.mlflow_uri, home.mlflow_uri())
        named = {name: place for name, (place, found) in places.items() if place != found}
        settings = [f"RESURGE_{name}={shlex.quote(redact(p))} " for name, p in named.items()]
        flag = "" if home.root == usual.root else f" --home {shlex.quote(str(home.root))}"
        return f"{''.join(settings)}resurge {words}{flag}"

    def remember(self) -> None:
        """From now on its store knows the sweep by name, with what is planned now."""
        plan, points = self.plan, None
        if self.is_search:
            from orchestrator.study.stored_points import keep

            plan, points = keep(self.points, self.studies)
        values = StoredSweep.of(self.sweep, plan, points).to_json()
        try:
            before = self.store.sweep(self.name)
        except DamagedDocument:  # writing it again mends it
            before = None
        if before != values:
            self.store.put_sweep(self.name, values)

    def done(self) -> set[str]:
        """Keys of the plan's stages that have a record.

        Raises:
            StoreError: a record was made with a default that has moved since.
        """
        keys = self.store.keys()
        done = {s.key for s in self.plan.stages if s.key in keys and self.store.get(s)}
        self.store.flush()
        return done

    def worst_cases(self) -> list[WorstCase]:
        """What its search has found, by study."""
        from orchestrator.study.worst_case import worst_cases

        return worst_cases(self.points, self.studies, self.store)


def is_file(sweep: str) -> bool:
    """Whether a file is meant, and not the name of a sweep; a folder may be called like one."""
    is_there = os.path.exists(sweep) and not os.path.isdir(sweep)
    return is_there or Path(sweep).suffix in (".yaml", ".yml")


def open_job(sweep: str, overrides: Iterable[str], home: Home, opened: Store | None = None) -> Job:
    """The job of a sweep file, or of a sweep's name as it was last run; planned as of now.

    Raises:
        ResurgeError: the file is wrong, or the home's store knows no sweep of that name.
    """
    if is_file(sweep):
        given = load(Path(sweep), tuple(overrides))
        home.check(given)
        _refuse_unscored(given, sweep)
        return Job(given, home, opened)
    store = opened or Store(home.store_location())
    found = _read_again(_known(sweep, store), overrides)
    home.check(found)
    _refuse_unscored(found)
    return Job(found, home, store)


def _refuse_unscored(sweep: Sweep, file: str | None = None) -> None:
    """Pictures that no metric scores cost their GPU hours and give no resurgence.

    Raises:
        SweepError: they would be drawn.
    """
    evaluate = sweep.evaluate
    if evaluate.gives_resurgence or not evaluate.draws:
        return
    names = ", ".join(metric.name for metric in evaluate.metrics)
    what = (
        f"no metric here ({names}) scores single pictures, so pictures would be drawn and give no "
        "resurgence: add one that does (`resurge list metrics`; the judge of your concepts), or "
        "say evaluate.pictures: none, which draws none and compares what is left"
    )
    raise SweepError([Problem(what, "evaluate.metrics", file)])


def open_results(sweep: str, home: Home, opened: Store | None = None) -> Job:
    """The job of a sweep as it was last run, by its name or its file, for those who only read.

    It needs neither the sweep's plug-ins nor what they point at. A file that says something else
    than what was run last is planned as it is now, with a remark.

    Raises:
        ResurgeError: as of `open_job`.
    """
    if not is_file(sweep):
        store = opened or Store(home.store_location())
        known = _known(sweep, store)
        home.check(known)
        return Job(known, home, store)
    try:
        asked = load(Path(sweep))
    except SweepError as error:
        store = opened or Store(home.store_location())
        found = _run_from(Path(sweep), store)
        if found is None:
            raise
        home.check(found)
        first = " ".join(str(error.problems[0]).split())
        remark = f"{sweep} cannot be planned here now ({first}); what follows is what was run"
        return Job(found, home, store, remark)
    home.check(asked)
    job = Job(asked, home, opened)
    try:
        values = job.store.sweep(asked.name)
    except DamagedDocument as error:
        remark = f"{error}; what follows is of {sweep} as it is now"
        return Job(asked, home, job.store, remark)
    if values is None:
        return job
    known = StoredSweep.from_json(asked.name, values)
    then = Job(known, home, job.store)
    differing = _differing(asked, known)
    if not differing or _are_the_same_trials(job, then):
        return then
    remark = (
        f"{sweep} is not what was run last under the name {asked.name!r} (another "
        f"{', '.join(differing)}): what follows is of the file as it is now; resurge results "
        f"{asked.name} shows what was run"
    )
    return Job(asked, home, job.store, remark)


def _known(name: str, store: Store) -> StoredSweep:
    values = store.sweep(name) if NAME.fullmatch(name) else None
    if values is None:
        names = store.sweeps()
        hint = suggest(name, names) if names else "; none has been run yet"
        folder = " (a folder is)" if os.path.isdir(name) else ""
        what = "no sweep file and no known sweep is called"
        raise ResurgeError(f"{what} {shortened(name, LONGEST_TEXT)!r}{folder}{hint}")
    return StoredSweep.from_json(name, values)


def _read_again(known: StoredSweep, overrides: Iterable[str] = ()) -> Sweep:
    """The sweep, checked against the plug-ins and files that are here now."""
    overrides = tuple(overrides)
    found = parse(json.dumps(known.values), None, overrides)
    overridden = found.overridden if overrides else known.overridden
    return dataclasses.replace(found, source=known.source, overridden=overridden)


def _run_from(path: Path, store: Store) -> StoredSweep | None:
    """The sweep that was last run from a file of this very text."""
    try:
        text = redact(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        return None
    for name in store.sweeps():
        with suppress(DamagedDocument):  # one that cannot be read is none of that text
            if (known := _known(name, store)).source == text:
                return known
    return None


_NO_RESULT = {"keep", "resources", "store", "mlflow", "reference"}
"""Parts of a sweep file on which no number hangs."""


def _differing(asked: Sweep, known: StoredSweep) -> list[str]:
    """The parts of the file that say something else than what was run."""
    now, then = asked.canonical(), known.values
    names = [name for name in dict.fromkeys((*now, *then)) if name not in _NO_RESULT]
    return [name for name in names if now.get(name) != then.get(name)]


def _are_the_same_trials(now: Job, then: Job) -> bool:
    """Whether a file that is written in another way comes to what was run."""
    if now.is_search or then.is_search:
        return False
    digests = [[trial.digest for trial in job.plan.trials] for job in (now, then)]
    return digests[0] == digests[1]
