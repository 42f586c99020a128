"""What MLflow should show of a search: a run for each study; below it, one for each trial and one
for each setting that was confirmed.

A pure view of the studies and the store. Times are those of the trials and the records, so that
writing a point a second time writes the same point.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator.core.digest import sha256
from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan, PlannedTrial
from orchestrator.results.measure import TrialReader
from orchestrator.store.store import Record, Store
from orchestrator.study.optuna_views import importance, in_memory, plots
from orchestrator.study.points import RUINED, Points
from orchestrator.study.studies import is_complete, read_studies
from orchestrator.study.tried import Tried, TriedState, counted, in_order
from orchestrator.study.words import asked, confirm_text, point_text, sentences
from orchestrator.study.worst_case import COVERAGE_RADIUS, Confirmed, WorstCase, worst_cases
from orchestrator.sweep.search import Search
from orchestrator.sweep.space import Coverage
from orchestrator.tracking.inputs import data_inputs
from orchestrator.tracking.run import (
    CONFIRMED,
    WORST_CASE,
    File,
    Made,
    Run,
    RunStatus,
    as_params,
    end_of,
    start_of,
)
from orchestrator.tracking.search_numbers import confirmed_points, study_points, trial_points
from orchestrator.tracking.sweep_runs import evaluate_params

STATUS: Mapping[TriedState, RunStatus] = {
    "done": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "running": "RUNNING",
}
"""A pruned trial has done its part: KILLED looks like a failure in MLflow. Its tag tells."""


@dataclass
class _Covered:
    """How much of a study's space was covered after each of its trials, in order."""

    so_far: Coverage
    curve: list[float] = field(default_factory=list)


class StudyView:
    """A search's runs.

    Args:
        points: the search's points.
        storage: where its studies are.
        store: where its records are.
    """

    def __init__(self, points: Points, storage: str, store: Store) -> None:
        self.name = points.name
        self.store = store
        self._storage = storage
        self._points = points
        self._reader: TrialReader | None = None
        self._plans: dict[tuple[str, int], Plan | None] = {}
        self._covered: dict[str, _Covered] = {}

    def runs(self, only_new: bool = False) -> Iterator[Run]:
        """Each study's run, then those of its trials and of its confirmed settings; always all."""
        if self._reader is None:
            self._reader = TrialReader(self._points.nothing, self.store)
        else:
            self._reader.refresh()
        for study in read_studies(self._points, self._storage):
            case, *tighter = worst_cases(self._points, [study], self.store)
            # A trial that has begun and measured nothing may still turn out to be a repeat.
            trials = [t for t in counted(case.trials) if t.state != "running" or t.curve]
            if trials:
                is_over = is_complete(self._points, [study], self.store)
                plans = {trial.number: self._plan(case, trial) for trial in trials}
                coverage = self._coverage(case)
                shown = _Study(case, tighter, is_over, self._points, self._reader, plans, coverage)
                yield shown.run()
                yield from map(shown.trial, trials)
                for one in shown.all_confirmed:
                    if one.setting.scored or one.setting.failed:
                        yield shown.confirmed(one)

    def holds(self, key: str) -> bool:
        """Whether one of its studies has it; what was confirmed on other seeds is another's."""
        seeds = self._points.fresh_seeds
        for fixed in self._points.fixed:
            study = f"study {self._points.study_name(fixed)}"
            is_trial = key.startswith(f"{study} trial ")
            is_confirmed = key.startswith(f"{study} confirmed ") and key.endswith(f" on {seeds}")
            is_inner = self._points.search.defend is not None and key.startswith(f"{study}/")
            if key == study or is_trial or is_confirmed or is_inner:
                return True
        return False

    def _plan(self, case: WorstCase, trial: Tried) -> Plan | None:
        """The stages of a trial's last numbers; None if its settings do not go together."""
        key = (case.name, trial.number)
        if key in self._plans:
            return self._plans[key]
        steps = None if trial.state in ("done", "failed") else max(trial.curve, default=None)
        try:
            plan = self._points.measuring(trial.point, steps)
        except ResurgeError:
            plan = None
        if trial.state != "running":
            self._plans[key] = plan
        return plan

    def _coverage(self, case: WorstCase) -> list[float]:
        """After each trial that is over; what was counted before is not counted again."""
        if case.name not in self._covered:
            self._covered[case.name] = _Covered(Coverage(case.space, COVERAGE_RADIUS))
        covered = self._covered[case.name]
        for trial in in_order(case.trials)[len(covered.curve) :]:
            if trial.state != "failed":
                covered.so_far.add(trial.point)
            covered.curve.append(covered.so_far.share)
        return covered.curve


@dataclass(frozen=True)
class _Study:
    """A study at one moment, as runs."""

    case: WorstCase
    tighter: Sequence[WorstCase]
    is_over: bool
    points: Points
    reader: TrialReader
    plans: Mapping[int, Plan | None]
    coverage: Sequence[float]

    @property
    def key(self) -> str:
        return f"study {self.case.name}"

    @cached_property
    def all_confirmed(self) -> list[Confirmed]:
        """Under whatever bounds, each setting once; its feasibility is by the loosest."""
        found: dict[int, Confirmed] = {}
        for case in (self.case, *self.tighter):
            for one in case.confirmed:
                found.setdefault(one.tried.number, one)
        return list(found.values())

    def run(self) -> Run:
        """The study's own run."""
        case, search = self.case, self.points.search
        over = in_order(case.trials)
        stages = [stage for plan in self.plans.values() if plan for stage in plan.stages]
        confirming = [
            record
            for one in self.all_confirmed
            for record in self._own_records(self.points.confirming(one.tried.point).trials)
        ]
        made = Made.of((*self.reader.records(dict.fromkeys(stages)), *confirming))
        texts = {
            "space.json": json.dumps(case.space.described(), indent=1, ensure_ascii=False),
            "environment.json": made.environments(),
            "sweep.yaml": self.points.recorded,
        }
        shares = importance(in_memory(case.trials, case.space, case.goals))
        ends = [*(trial.ended_ms for trial in over), *map(end_of, confirming)]
        end_ms = max(ends, default=0)
        return Run(
            kind="study",
            key=self.key,
            name=case.name,
            status="FINISHED" if self.is_over else "RUNNING",
            start_ms=min(trial.started_ms for trial in counted(case.trials)),
            end_ms=end_ms,
            params=as_params({**asked(self.points), **self._held_fixed()}),
            tags={
                "resurge.budget": str(case.budget),
                "resurge.sampler": search.settings.sampler,
                "resurge.pruner": search.settings.pruner,
                "resurge.confirm": confirm_text(search),
                "mlflow.note.content": "\n\n".join(self._sentences()),
                **made.commit_tags(),
            },
            points=tuple(study_points(case, self.coverage, shares, end_ms)),
            texts=texts,
            files=_files(case, search, shares),
        )

    def _sentences(self) -> Iterator[str]:
        for case in (self.case, *self.tighter):
            yield from sentences(case, self.points.search)

    def trial(self, trial: Tried) -> Run:
        """A trial's run: metrics over optimiser steps, its own step count last."""
        case = self.case
        plan = self.plans[trial.number]
        planned = plan.trials[0] if plan else None
        steps = planned.steps if planned else max(trial.curve, default=0)
        tags = {
            "resurge.study": case.name,
            "resurge.number": str(trial.number),
            "resurge.state": trial.state,
        }
        if trial.state in ("done", "pruned"):
            tags["resurge.feasible"] = _flag(trial.is_feasible)
            tags |= _digests(plan.trials if plan else ())
        if trial.numbers.get(RUINED):
            tags["resurge.model_ruined"] = "true"
        if trial.reason:
            tags |= {"resurge.reason": trial.reason, "mlflow.note.content": trial.reason}
        tags |= self._marks(trial.number)
        return Run(
            kind="trial",
            key=f"{self.key} trial {trial.number}",
            name=f"trial {trial.number} · {self._settings(trial)}",
            status=STATUS[trial.state],
            start_ms=trial.started_ms,
            end_ms=trial.ended_ms,
            parent=self.key,
            params=as_params(trial.point),
            tags=tags,
            points=tuple(trial_points(trial, steps, self.points.search)),
            data=data_inputs(self.reader, planned.final.model) if planned else (),
        )

    def confirmed(self, one: Confirmed) -> Run:
        """The run of a setting on fresh seeds. Other seeds make another run."""
        number, seeds = one.tried.number, self.points.fresh_seeds
        plan = self.points.confirming(one.tried.point)
        trials = [planned for planned in plan.trials if not planned.is_control]
        records, flags = list(self._own_records(trials)), list(one.setting.flags())
        end_ms = max(map(end_of, records), default=0)
        status: RunStatus = "FAILED" if one.setting.failed else "RUNNING"
        if all(stage.kind == "base" or self.reader.record(stage) for stage in plan.stages):
            status = "FINISHED"
        return Run(
            kind="confirmed",
            key=f"{self.key} confirmed {number} on {seeds}",
            name=f"confirmed {number} · {self._settings(one.tried)}",
            status=status,
            start_ms=min(map(start_of, records), default=0),
            end_ms=end_ms,
            parent=self.key,
            params=as_params({**one.tried.point, "seeds": ", ".join(map(str, seeds))}),
            tags={
                "resurge.study": self.case.name,
                "resurge.number": str(number),
                "resurge.feasible": _flag(one.is_feasible),
                **({"resurge.flags": ", ".join(flags)} if flags else {}),
                **({"resurge.model_ruined": "true"} if one.setting.model_ruined else {}),
                **_digests(trials),
                **self._marks(number),
            },
            points=tuple(confirmed_points(one, self.points.search, end_ms)),
            images=self._images(trials[0]),
            data=data_inputs(self.reader, trials[0].final.model),
        )

    def _settings(self, trial: Tried) -> str:
        """'esd related lr=1e-3 steps=400'."""
        fixed = [str(value) for value in self.case.fixed.values()]
        return " ".join([*fixed, point_text(trial.point, self.case.space)])

    def _marks(self, number: int) -> dict[str, str]:
        """Of the trial, and of the run on fresh seeds that came of it."""
        measured = [one for one in self.all_confirmed if one.numbers]
        worst = [c.worst.tried.number for c in (self.case, *self.tighter) if c.worst]
        return {
            **({CONFIRMED: "true"} if any(o.tried.number == number for o in measured) else {}),
            **({WORST_CASE: "true"} if number in worst else {}),
        }

    def _held_fixed(self) -> dict[str, Any]:
        """What every trial of the study has."""
        searched = {dimension.name for dimension in self.case.space.dimensions}
        plan = next((plan for plan in self.plans.values() if plan), None)
        params = plan.trials[0].trial.params if plan else {}
        held = {k: v for k, v in params.items() if k not in searched and k != "seed"}
        return {**(evaluate_params(plan) if plan else {}), **held, **self.case.fixed}

    def _own_records(self, trials: Iterable[PlannedTrial]) -> Iterator[Record]:
        """Of the final models and their evaluation, which no other setting has."""
        finals = [planned.final for planned in trials]
        return self.reader.records(s for f in finals for s in (f.model, f.sample, *f.scores))

    def _images(self, planned: PlannedTrial) -> dict[int, Record]:
        """Of the first fresh seed: the unlearned model at step 0, and the final one."""
        stages = {0: planned.unlearned.sample} if planned.starts_unlearned else {}
        stages[planned.steps] = planned.final.sample
        found = {step: self.reader.record(stage) for step, stage in stages.items()}
        return {step: record for step, record in found.items() if record is not None}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _digests(trials: Iterable[PlannedTrial]) -> dict[str, str]:
    """By which `resurge reproduce` finds them: the first seed's, and each seed's."""
    by_seed = {f"resurge.trial.seed_{t.trial.seed}": t.digest for t in trials}
    first = next(iter(by_seed.values()), None)
    return {"resurge.trial": first, **(by_seed if len(by_seed) > 1 else {})} if first else {}


def _files(case: WorstCase, search: Search, shares: Mapping[str, float]) -> dict[str, File]:
    """The pictures, and the page to explore, as soon as there is a value to show."""
    from orchestrator.tracking.search_figures import drawings

    shown = [
        [t.number, t.state, repr(t.values), repr(t.curve), dict(t.point), t.is_feasible]
        for t in counted(case.trials)
    ]
    confirmed = [[one.tried.number, repr(one.goal), one.is_feasible] for one in case.confirmed]
    digest = sha256([case.name, repr(case.goals), case.space.described(), shown, confirmed])
    makers: dict[str, Callable[[], bytes]] = dict(drawings(case, shares))
    if case.count("done") > 1:

        def study_page() -> bytes:
            from orchestrator.tracking.search_page import page

            figures = plots(in_memory(case.trials, case.space, case.goals), case.goals)
            return page(case.name, sentences(case, search), figures).encode()

        makers["study.html"] = study_page
    return {name: File(digest, make) for name, make in makers.items()}
