"""Runs a search: asks the studies for points, has the scheduler measure them, tells the studies.

What the store has is told at once, what two trials share is run once, and a trial that goes on to
more steps goes on with the same trajectory. One thread owns the studies; it asks ahead, so that no
worker waits for a sampler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Scheduler
from orchestrator.store.store import Store
from orchestrator.study.budget import Spending, spending
from orchestrator.study.defence import judged
from orchestrator.study.points import PointPlanner
from orchestrator.study.studies import open_studies, open_study, read_studies
from orchestrator.study.study import Study
from orchestrator.study.tried import Tried
from orchestrator.study.worst_case import asked_plan, breaks_defence, confirmed, is_no_defence
from orchestrator.sweep.space import Point


class Watcher(Protocol):
    """Hears how a search goes; on the thread that owns the studies, or the scheduler's."""

    def begin(self, study: str, trials: list[Tried]) -> None:
        """What a study has already."""

    def told(self, study: str, trial: Tried) -> None:
        """A trial has its value, or has none."""

    def confirming(self, settings: int) -> None:
        """The budget is spent; that many settings are run on fresh seeds."""


@dataclass
class Lane:
    """A study with what is under way in it."""

    fixed: Point
    study: Study
    asked: Future[Tried | None] | None = None
    is_over: bool = False
    started: int = 0
    running: list[_SearchRun] = field(default_factory=list)
    spent: Spending | None = None


@dataclass
class _SearchRun:
    """A trial on its way: the step counts still to be measured, and the plan of the first."""

    lane: Lane
    tried: Tried
    rungs: list[int]
    plan: Plan | None = None
    verdict: Future[bool] | None = None


@dataclass
class _Outer:
    """A study of defences, and the lane that seeks the worst case of the one that is tried now."""

    study: Study
    waiting: deque[Tried] = field(default_factory=deque)
    asked: Future[Tried | None] | None = None
    tried: Tried | None = None
    lane: Lane | None = None
    is_over: bool = False


class Searcher:
    """Runs a search to its end on an executor that is started.

    Args:
        points: the sweep's points.
        storage: where the studies live.
        scheduler: without tasks; the searcher adds them.
        parallel: trials under way at a time.
        watcher: hears how it goes.
        check: called now and then; raises if this process must not go on.
    """

    def __init__(
        self,
        points: PointPlanner,
        storage: str,
        scheduler: Scheduler,
        parallel: int,
        watcher: Watcher,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.points = points
        self.scheduler = scheduler
        self.store: Store = scheduler.store
        self.parallel = parallel
        self.watcher = watcher
        self.check = check
        # Later trials begin from the unlearned models, and go on from the training states.
        self.keep = ("unlearned", "checkpoints", *points.sweep.keep)
        self._keeps_states = "checkpoints" in points.sweep.keep
        self._states: deque[str] = deque()
        self._checked: set[str] = set()
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="resurge-study")
        self._telling: list[Future[Any]] = []
        self._storage = storage
        opened = self._owner.submit(open_studies, points, storage).result()
        is_inner = points.search.defend is None
        self.lanes = [Lane(fixed, study) for fixed, study in opened] if is_inner else []
        self.outers = [] if is_inner else [_Outer(study) for _, study in opened]

    def run(self) -> None:
        """Until every study's budget is spent and its best settings are confirmed."""
        try:
            for lane in self.lanes:
                self._begin(lane)
            for outer in self.outers:
                outer.waiting.extend(self._owner.submit(outer.study.adopt).result())
            while self._is_under_way:
                self._turn()
            self._finish_telling(wait=True)
            self._confirm()
            # A head that was killed has left training states that this one never heard of.
            self._remember_states(asked_plan(self.points, self._tried()))
        finally:
            self._owner.shutdown(wait=True, cancel_futures=True)
            self._drop_states(0)

    def _begin(self, lane: Lane) -> None:
        """Go on with what was running when the study was last closed."""
        adopted = self._owner.submit(lane.study.adopt).result()
        before = self._owner.submit(lane.study.tried).result()
        self.watcher.begin(lane.study.name, before)
        lane.spent = spending(self.points, before, self.store)
        lane.is_over = breaks_defence(self.points.search, before)
        for tried in adopted:
            self._start(lane, tried)

    @property
    def _is_under_way(self) -> bool:
        is_searching = any(lane.running or not lane.is_over for lane in self.lanes)
        return is_searching or any(one.lane or not one.is_over for one in self.outers)

    @property
    def _under_way(self) -> list[_SearchRun]:
        return [run for lane in self.lanes for run in lane.running]

    def _turn(self) -> None:
        """Whatever can be done at once, then wait for the next thing to happen."""
        self.check()
        while self._defend() or self._collect() or self._fill():
            pass
        self._finish_telling(wait=False)
        awaited: list[Future[Any]] = [r.verdict for r in self._under_way if r.verdict is not None]
        if self.scheduler.is_busy:
            is_asking = awaited or len(self._under_way) < self.parallel
            self.scheduler.advance(0.05 if is_asking else 1.0)
            return
        awaited += [lane.asked for lane in self.lanes if lane.asked is not None]
        awaited += [outer.asked for outer in self.outers if outer.asked is not None]
        if awaited:
            futures.wait(awaited, 1.0, futures.FIRST_COMPLETED)

    def _defend(self) -> bool:
        """Go on with one outer study: judge its defence, or try the next; whether there was one."""
        for outer in self.outers:
            lane = outer.lane
            if lane is not None:
                if lane.is_over and not lane.running and lane.asked is None:
                    self._judge(outer, lane)
                    return True
            elif outer.waiting:
                self._try(outer, outer.waiting.popleft())
                return True
            elif outer.asked is None and not outer.is_over:
                outer.asked = self._owner.submit(outer.study.ask)
            elif outer.asked is not None and outer.asked.done():
                tried, outer.asked = outer.asked.result(), None
                outer.is_over = tried is None
                if tried is not None:
                    self._try(outer, tried)
                return True
        return False

    def _try(self, outer: _Outer, tried: Tried) -> None:
        """Seek the worst case of a defence."""
        opened = self._owner.submit(open_study, self.points, self._storage, tried.point)
        outer.tried, outer.lane = tried, Lane(tried.point, opened.result())
        self.lanes.append(outer.lane)
        self._begin(outer.lane)

    def _judge(self, outer: _Outer, lane: Lane) -> None:
        """Tell the outer study what the worst case of its defence is."""
        assert outer.tried is not None
        number, outer.lane, outer.tried = outer.tried.number, None, None
        trials = self._owner.submit(lane.study.tried).result()
        found = judged(self.points.search, trials)
        if found is not None:
            value, numbers = found
            tell = outer.study.tell
            told = self._owner.submit(tell, number, [value], numbers.found, numbers.violations)
        else:
            reason = next((t.reason for t in trials if t.reason), "none of its trials has a value")
            for left in (t.number for t in trials if t.state == "running"):
                self._telling.append(self._owner.submit(lane.study.tell_failed, left, reason))
            told = self._owner.submit(outer.study.tell_failed, number, reason)
        self._telling.append(told)

    def _fill(self) -> bool:
        """Start a trial that was asked for ahead; whether there was one."""
        for lane in self.lanes:
            if lane.asked is not None or lane.is_over:
                continue
            if lane.spent is not None and lane.spent.is_over:
                lane.is_over = not lane.running
            else:
                lane.asked = self._owner.submit(lane.study.ask)
        if len(self._under_way) >= self.parallel:
            return False
        ready = [lane for lane in self.lanes if lane.asked is not None and lane.asked.done()]
        if not ready:
            return False
        lane = min(ready, key=lambda lane: (len(lane.running), lane.started))
        assert lane.asked is not None  # it was just seen
        tried, lane.asked = lane.asked.result(), None
        if tried is None:
            lane.is_over = True
        else:
            self._start(lane, tried)
        return True

    def _start(self, lane: Lane, tried: Tried) -> None:
        try:
            rungs = self.points.rungs(tried.point)
        except ResurgeError as error:
            self._tell(lane, tried, lane.study.tell_failed, tried.number, str(error))
            return
        # An adopted trial goes on at the rung whose verdict it may not have heard.
        begin = max(tried.curve, default=0)
        run = _SearchRun(lane, tried, [rung for rung in rungs if rung >= begin])
        lane.running.append(run)
        lane.started += 1
        self._launch(run)

    def _launch(self, run: _SearchRun) -> None:
        """Have the trial's next step count measured."""
        trials = self.points.trials(run.tried.point, run.rungs[0])
        run.plan = self.points.plan(trials)
        if run.lane.spent is not None:
            run.lane.spent.add(run.plan)
        self._schedule(run.plan)

    def _schedule(self, plan: Plan) -> None:
        scheduler = self.scheduler
        for stage in plan.stages:
            if stage.key in scheduler.done and stage.key not in self._checked:
                self.store.get(stage)  # refuses a record whose defaults have moved since
                self._checked.add(stage.key)
        if not self._lost(plan):
            known = scheduler.done | scheduler.under_way
            has_score_workers = self.points.sweep.resources.has_score_workers
            scheduler.add(make_tasks(plan, known, self.keep, has_score_workers))

    def _lost(self, plan: Plan) -> set[str]:
        """Keys of the plan's stages that failed, or that wait for such."""
        outcome = self.scheduler.outcome
        return {s.key for s in plan.stages} & (outcome.failed.keys() | outcome.skipped)

    def _collect(self) -> bool:
        """Go on with one trial whose stages are over; whether there was one."""
        for run in self._under_way:
            if run.verdict is not None:
                if run.verdict.done():
                    self._go_on(run)
                    return True
            elif run.plan is not None:
                keys = {stage.key for stage in run.plan.stages}
                is_lost = self._lost(run.plan) and keys.isdisjoint(self.scheduler.under_way)
                if keys <= self.scheduler.done or is_lost:
                    self._measured(run, run.plan)
                    return True
        return False

    def _measured(self, run: _SearchRun, plan: Plan) -> None:
        lane, tried = run.lane, run.tried
        study, number = lane.study, tried.number
        if lost := self._lost(plan):
            if self._is_hopeless(lane, lost):
                # No budget is spent on what cannot be measured; the next attempt adopts the trials.
                lane.running, lane.asked, lane.is_over = [], None, True
            else:
                failed = self.scheduler.outcome.failed
                first = next((failed[key] for key in sorted(lost) if key in failed), None)
                reason = "a stage that it needs failed in an earlier trial"
                if first is not None:
                    reason = f"{first.message} (log: {first.log_path})"
                self._end(run, study.tell_failed, number, reason)
            return
        numbers = self.points.numbers(plan, self.store, tried.point)
        if numbers.missing is not None:
            self._end(run, study.tell_failed, number, numbers.missing)
            return
        defend = self.points.search.defend
        if defend is not None and is_no_defence(defend, numbers.found):
            lane.is_over = True
        values = [numbers.found[goal.name] for goal in study.goals]
        if len(run.rungs) == 1:
            self._end(run, study.tell, number, values, numbers.found, numbers.violations)
            return
        run.verdict = self._owner.submit(study.report, number, run.rungs[0], values[0])

    def _go_on(self, run: _SearchRun) -> None:
        """After a rung: on to the next, or stopped with what was measured."""
        assert run.verdict is not None and run.plan is not None
        should_stop, run.verdict = run.verdict.result(), None
        if not should_stop:
            del run.rungs[0]
            self._launch(run)
            return
        numbers = self.points.numbers(run.plan, self.store, run.tried.point)
        study, number = run.lane.study, run.tried.number
        self._end(run, study.tell_pruned, number, numbers.found, numbers.violations)

    def _is_hopeless(self, lane: Lane, lost: set[str]) -> bool:
        """Whether what failed is needed by every point of the study, the unlearned model say."""
        if lane.study.space.size == 1:
            return False
        plans = (self.points.plan(self.points.trials(p)) for p in lane.study.space.corners())
        shared = set.intersection(*({stage.key for stage in plan.stages} for plan in plans))
        return not shared.isdisjoint(lost & self.scheduler.outcome.failed.keys())

    def _end(self, run: _SearchRun, tell: Callable[..., None], *values: Any) -> None:
        run.lane.running.remove(run)
        if run.plan is not None:
            self._remember_states(run.plan)
        self._tell(run.lane, run.tried, tell, *values)

    def _tell(self, lane: Lane, tried: Tried, tell: Callable[..., None], *values: Any) -> None:
        """Have the study told, behind what it was asked before."""

        def told() -> None:
            tell(*values)
            self.watcher.told(lane.study.name, lane.study.one(tried.number))

        self._telling.append(self._owner.submit(told))

    def _finish_telling(self, wait: bool) -> None:
        """Raise what went wrong while telling."""
        over = [future for future in self._telling if wait or future.done()]
        for future in over:
            future.result()
            self._telling.remove(future)

    def _remember_states(self, plan: Plan) -> None:
        """Keep the newest training states; an unlearning's are of no use once it is done."""
        if self._keeps_states:
            return
        for stage in plan.stages:
            if stage.kind == "unlearn":
                self.store.drop_checkpoints(stage.digest)
            elif stage.trajectory and stage.trajectory not in self._states:
                self._states.append(stage.trajectory)
        self._drop_states(self.points.search.settings.checkpoints * len(self.points.sweep.seeds))

    def _drop_states(self, kept: int) -> None:
        plans = [run.plan for run in self._under_way if run.plan is not None]
        needed = {stage.trajectory for plan in plans for stage in plan.stages}
        for trajectory in list(self._states):
            if len(self._states) > kept and trajectory not in needed:
                self._states.remove(trajectory)
                self.store.drop_checkpoints(trajectory)

    def _tried(self) -> list[tuple[str, Point, list[Tried]]]:
        """By study its name, what it holds fixed, and its trials."""
        return self._owner.submit(read_studies, self.points, self._storage).result()

    def _confirm(self) -> None:
        """Run every study's best settings on fresh seeds, with their controls."""
        plans = []
        for _, _, trials in self._tried():
            plans += [self.points.confirming(t.point) for t in confirmed(trials, self.points)]
        self.watcher.confirming(len(plans))
        for plan in plans:
            self._schedule(plan)
        while self.scheduler.is_busy:
            self.check()
            self.scheduler.advance(1.0)
        for plan in plans:
            self._remember_states(plan)
