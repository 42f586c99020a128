"""What MLflow should show of a sweep: a run for it, for every trajectory and for every trial.

A pure view of the store. Times are those of the records, so that writing a point a second time
writes the same point. `search_runs` does the same for a search.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from orchestrator.core.artifacts import CONSTANT_PICTURES, LOSS
from orchestrator.core.digest import sha256
from orchestrator.core.stage import Stage
from orchestrator.plan.labels import trial_label
from orchestrator.plan.plan import Plan, PlannedTrial
from orchestrator.results.chains import means_of, passages
from orchestrator.results.measure import Measured, TrialReader
from orchestrator.store.store import Record, Store
from orchestrator.sweep.trial import scalar
from orchestrator.tracking.inputs import data_inputs
from orchestrator.tracking.run import (
    Made,
    MetricPoint,
    Run,
    RunStatus,
    as_params,
    end_of,
    points_of,
    start_of,
)

SWEEP_KEY = "sweep"
LOSS_POINTS = 200


class SweepView:
    """A sweep's runs.

    Args:
        plan: the sweep's plan.
        store: where its records are.
        source: the sweep file's text.
    """

    def __init__(self, plan: Plan, store: Store, source: str | None) -> None:
        self.name = plan.name
        self.store = store
        self._plan = plan
        self._source = source
        self._reader: TrialReader | None = None
        self._made = Made()
        self._counted: set[str] = set()
        self._measured: dict[str, Measured] = {}
        self._unsent: set[str] = set()
        self._asked = evaluate_params(plan)
        self._asked_of: dict[str, dict[str, Any]] = {}
        # The rest of it is in the stages' digests, whatever else it is called by.
        self._apart = {key: self._asked.get(f"evaluate.{key}") for key in ("metrics", "controls")}

    @cached_property
    def _stages(self) -> dict[str, Stage]:
        return {stage.key: stage for stage in self._plan.stages}

    @cached_property
    def _readers_of(self) -> dict[str, list[PlannedTrial]]:
        """By a stage's key, the trials whose numbers hang on it; those of its control are."""
        finals = {
            (trial.final.model.digest, trial.trial.concept): trial.final.stages()
            for trial in self._plan.trials
            if trial.is_control
        }
        found: dict[str, list[PlannedTrial]] = {}
        for planned in self._plan.trials:
            also = finals.get((planned.control or "", planned.trial.concept), ())
            for key in dict.fromkeys(stage.key for stage in (*planned.stages(), *also)):
                found.setdefault(key, []).append(planned)
        return found

    @cached_property
    def _members(self) -> dict[str, list[PlannedTrial]]:
        """Trials that differ in nothing but the steps of their last fine-tune, in their order."""
        found: dict[str, list[PlannedTrial]] = {}
        for planned in self._plan.trials:
            if planned.steps_param is not None:
                found.setdefault(_trajectory(planned), []).append(planned)
        for members in found.values():
            members.sort(key=lambda planned: planned.steps)
        return found

    @cached_property
    def _text(self) -> str:
        return _plan_text(self._plan)

    @cached_property
    def _trials(self) -> dict[str, str]:
        """The run's key of every trial, by the trial's."""
        return _told_apart(
            (planned.key, {"trial": _meaning(planned), **self._apart}, dict(planned.params))
            for planned in self._plan.trials
        )

    @cached_property
    def _trajectories(self) -> dict[str, str]:
        """The run's key of every trajectory that leads anywhere, by that of its trials."""
        some = {_trajectory(planned): planned for planned in self._plan.trials if planned.steps}
        return _told_apart(
            (own, {"trajectory": _course(planned), **self._apart}, own)
            for own, planned in some.items()
        )

    def holds(self, key: str) -> bool:
        """Whether the sweep has it, begun or not."""
        return key == SWEEP_KEY or key in self._keys

    @cached_property
    def _keys(self) -> set[str]:
        return {*self._trials.values(), *self._trajectories.values()}

    def runs(self, only_new: bool = False) -> Iterator[Run]:
        """The sweep's run first, then those of its trajectories and trials that have begun."""
        reader = self._read()
        yield self._sweep_run()
        for own, members in self._members.items():
            is_new = not self._unsent.isdisjoint(planned.key for planned in members)
            key = self._trajectories.get(own)
            if key is None or (only_new and not is_new):
                continue
            measured = [self._measured[planned.key] for planned in members]
            if run := _trajectory_run(reader, measured, key, self._params(members[0])):
                yield run
        for planned in self._plan.trials:
            if only_new and planned.key not in self._unsent:
                continue
            key, asked = self._trials[planned.key], self._params(planned)
            if (run := _trial_run(reader, self._measured[planned.key], key, asked)) is not None:
                yield run
        self._unsent.clear()

    def _read(self) -> TrialReader:
        """Measure again what may be other than it was, and nothing else: a stage that is recorded
        must not cost what there is of thousands.
        """
        if self._reader is None:
            self._reader = TrialReader(self._plan, self.store)
            changed, new = list(self._stages), list(self._plan.trials)
        else:
            changed = [key for key in self._reader.refresh() if key in self._stages]
            readers = (planned for key in changed for planned in self._readers_of.get(key, ()))
            new = list({planned.key: planned for planned in readers}.values())
        reader = self._reader
        self._measured |= {one.planned.key: one for one in reader.measure_all(new)}
        self._unsent.update(planned.key for planned in new)
        if not self._counted.isdisjoint(changed):  # one is gone, or was made again
            self._made, changed = Made(), list(self._stages)
            self._counted.clear()
        for record in reader.records(self._stages[key] for key in changed):
            self._made.count(record)
            self._counted.add(record.key)
        return reader

    def _sweep_run(self) -> Run:
        plan, made = self._plan, self._made
        texts = {"plan.json": self._text, "environment.json": made.environments()}
        if self._source is not None:
            texts["sweep.yaml"] = self._source
        tags = {"resurge.trials": str(len(plan.trials)), "resurge.stages": str(len(plan.stages))}
        return Run(
            kind="sweep",
            key=SWEEP_KEY,
            name=plan.name,
            status=_status(self._measured[planned.key] for planned in plan.trials),
            start_ms=made.start_ms,
            end_ms=made.end_ms,
            tags=tags | made.commit_tags(),
            texts=texts,
        )

    def _params(self, planned: PlannedTrial) -> dict[str, Any]:
        """What a trial was asked, by name; the same for all trials of a concept."""
        concept = planned.trial.concept
        if concept not in self._asked_of:
            probes = planned.final.sample.settings["probes"]
            prompts = [probe["prompt"] for probe in probes if probe["role"] == "erased"]
            retained = [probe["concept"] for probe in probes if probe["role"] == "retained"]
            own = {"evaluate.prompts": scalar(prompts), "evaluate.retain": scalar(retained)}
            self._asked_of[concept] = self._asked | own
        return self._asked_of[concept]


def evaluate_params(plan: Plan) -> dict[str, Any]:
    """The base and how its models are judged, by name: numbers of other settings do not compare."""
    found: dict[str, Any] = {"base": plan.root.plugin}
    found |= _flat("base", plan.root.settings["settings"])
    stages = {stage.plugin: stage for stage in plan.stages if stage.kind == "score"}
    # The first trial's own come in the order of the file; the first metric gives the numbers.
    own = plan.trials[0].final.scores if plan.trials else ()
    metrics = {stage.plugin: stage for stage in own} | stages
    if metrics:
        found["evaluate.metrics"] = ", ".join(metrics)
        found["evaluate.controls"] = any(planned.is_control for planned in plan.trials)
    for name, stage in metrics.items():
        found |= _flat(f"evaluate.{name}", stage.settings["settings"])
    sample = next((stage for stage in plan.stages if stage.kind == "sample"), None)
    if sample is not None:
        found |= _flat("evaluate", sample.settings["settings"])
    return {name: scalar(value) for name, value in found.items()}


def _flat(prefix: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in settings.items()}


def _told_apart(given: Iterable[tuple[str, dict[str, Any], Any]]) -> dict[str, str]:
    """A key for what each means, by its name. Where several mean the same, how they were written
    tells them apart: settings make no difference at 0 steps, for example.
    """
    found = list(given)
    counts = Counter(sha256(meaning) for _, meaning, _ in found)
    return {
        name: sha256([meaning, written] if counts[sha256(meaning)] > 1 else meaning)[:16]
        for name, meaning, written in found
    }


def _meaning(planned: PlannedTrial) -> dict[str, Any]:
    """What a trial's numbers hang on, however it was written: a default is as good as unsaid."""
    points = (planned.unlearned, planned.final)
    return {
        "concept": planned.trial.concept,
        "control": planned.is_control,
        "stages": [stage.digest for at in points for stage in (at.sample, *at.scores)],
    }


def _course(planned: PlannedTrial) -> dict[str, Any]:
    """The same of all step counts of a trajectory: what its last fine-tune begins from, and how."""
    at, after = planned.final.model, []
    while (tuned := at.inputs.get("donor", at)).kind != "finetune" and at.parent is not None:
        after.append([at.kind, at.plugin, at.version, dict(at.identity), at.seed])
        at = at.parent
    settings = {k: v for k, v in tuned.identity.get("settings", {}).items() if k != "steps"}
    recipe = {**tuned.identity, "settings": settings}
    before = [stage.parent.digest for stage in (at, tuned) if stage.parent is not None]
    data = {name: stage.digest for name, stage in tuned.inputs.items()}
    point = planned.unlearned
    return {
        "concept": planned.trial.concept,
        "control": planned.is_control,
        "finetune": [at.kind, tuned.plugin, tuned.version, recipe, tuned.seed, before, data],
        "after": after,
        "stages": [stage.digest for stage in (point.sample, *point.scores)],
    }


def _trial_run(
    reader: TrialReader, measured: Measured, key: str, asked: Mapping[str, Any]
) -> Run | None:
    """None before the trial's last model is there."""
    planned = measured.planned
    own = list(reader.records(planned.final.stages()))
    model = planned.final.model
    is_made = model.kind == "base" or reader.record(model) is not None
    if not own or not (is_made or measured.status == "failed"):
        return None
    end_ms = max(end_of(record) for record in own)
    return Run(
        kind="trial",
        key=key,
        name=trial_label(reader.plan, planned),
        status=_status([measured]),
        start_ms=min(start_of(record) for record in own),
        end_ms=end_ms,
        parent=SWEEP_KEY,
        params=as_params({**asked, **planned.params}),
        tags=_digests(planned) | _flags([measured]) | _way_tag(planned),
        points=(*points_of(_trial_numbers(measured), 0, end_ms), *_way_points(reader, planned)),
        data=data_inputs(reader, model),
    )


def _way_points(reader: TrialReader, planned: PlannedTrial) -> Iterator[MetricPoint]:
    """Of a trial with several unlearnings every model's scores, by its place on the way in the
    place of the step.
    """
    for passage, waypoint in passages(planned) if planned.way else ():
        if (record := reader.record(waypoint.sample)) is not None:
            scores = means_of(reader, waypoint)
            named = {f"{passage.prefix}.{name}": score for name, score in scores.items()}
            yield from points_of(named, passage.position, end_of(record))


def _trajectory(planned: PlannedTrial) -> str:
    params = {k: v for k, v in planned.params.items() if k != planned.steps_param}
    return sha256({"params": params, "unlearned": planned.unlearned.sample.digest})


def _trajectory_run(
    reader: TrialReader, members: Sequence[Measured], key: str, asked: Mapping[str, Any]
) -> Run | None:
    """None before the curve has its first point."""
    first = members[0].planned
    points = [*_curve(reader, members), *_loss_points(reader, members)]
    if not points:
        return None
    params = {k: v for k, v in first.params.items() if k != first.steps_param}
    return Run(
        kind="trajectory",
        key=key,
        name=trial_label(reader.plan, first, with_steps=False),
        status=_status(members),
        start_ms=min(point.time_ms for point in points),
        end_ms=max(point.time_ms for point in points),
        parent=SWEEP_KEY,
        params=as_params({**asked, **params}),
        tags={"resurge.unlearned_model": first.unlearned.model.digest} | _flags(members),
        points=tuple(points),
        images=_images(reader, members),
        data=data_inputs(reader, members[-1].planned.final.model),
    )


def _curve(reader: TrialReader, members: Sequence[Measured]) -> Iterator[MetricPoint]:
    """The scores at each step count; step 0 is the unlearned model."""
    start = members[0]
    sample = reader.record(start.planned.unlearned.sample)
    if start.planned.starts_unlearned and sample and start.unlearned.erased is not None:
        numbers = {**asdict(start.unlearned), "resurgence": 0.0, "recovery": 0.0}
        yield from points_of(numbers, 0, end_of(sample))
    for measured in members:
        steps, sample = measured.planned.steps, reader.record(measured.planned.final.sample)
        if steps and sample and measured.final.erased is not None:
            yield from points_of(_final_numbers(measured), steps, end_of(sample))


def _final_numbers(measured: Measured) -> dict[str, float | None]:
    paired = measured.paired
    share = paired.recovery if paired else None
    return {
        **asdict(measured.final),
        "resurgence": paired.resurgence.value if paired else None,
        "recovery": share.value if share else None,
    }


def _trial_numbers(measured: Measured) -> dict[str, float | None]:
    paired = measured.paired
    back, share = (paired.resurgence, paired.recovery) if paired else (None, None)
    failed, ruined = measured.unlearning_failed, measured.model_ruined
    return {
        **_final_numbers(measured),
        "resurgence_low": back.low if back else None,
        "resurgence_high": back.high if back else None,
        "recovery_low": share.low if share else None,
        "recovery_high": share.high if share else None,
        "base": measured.base.erased,
        "unlearned": measured.unlearned.erased,
        "control": measured.control,
        "unlearning_failed": None if failed is None else float(failed),
        "model_ruined": None if ruined is None else float(ruined),
        CONSTANT_PICTURES: float(measured.pictures.constant),
        "pictures_without_value": float(measured.pictures.without_value),
        **measured.metrics,
    }


def _loss_points(reader: TrialReader, members: Sequence[Measured]) -> Iterator[MetricPoint]:
    """`loss` where the model was evaluated, `train_loss` on the way there."""
    before = 0
    for measured in members:
        model = measured.planned.final.model
        record = reader.record(model) if model.kind == "finetune" else None
        if record is None:
            continue
        if LOSS in record.metrics:
            yield MetricPoint(LOSS, record.metrics[LOSS], model.steps, end_of(record))
        losses = [pair for pair in reader.losses(record) if pair[0] > before]
        # At most LOSS_POINTS means over equal stretches, each at its last step.
        width = -(-len(losses) // LOSS_POINTS) or 1
        for begin in range(0, len(losses), width):
            stretch = losses[begin : begin + width]
            value = sum(loss for _, loss in stretch) / len(stretch)
            yield MetricPoint("train_loss", value, stretch[-1][0], end_of(record))
        before = model.steps


def _images(reader: TrialReader, members: Sequence[Measured]) -> dict[int, Record]:
    first = members[0].planned
    stages = {0: first.unlearned.sample} if first.starts_unlearned else {}
    stages |= {m.planned.steps: m.planned.final.sample for m in members if m.planned.steps}
    found = {step: reader.record(stage) for step, stage in stages.items()}
    return {step: record for step, record in found.items() if record is not None}


def _flags(trials: Sequence[Measured]) -> dict[str, str]:
    """What to filter by: runs whose numbers mean something else than they seem to."""
    flags = {
        "resurge.unlearning_failed": any(m.unlearning_failed for m in trials),
        "resurge.model_ruined": any(m.model_ruined for m in trials),
        "resurge.constant_pictures": any(m.pictures.constant for m in trials),
    }
    return {name: "true" for name, is_so in flags.items() if is_so}


def _way_tag(planned: PlannedTrial) -> dict[str, str]:
    """What the places on the way are."""
    passed = [passage for passage, _ in passages(planned) if not passage.aside]
    return {"resurge.way": " → ".join(one.label for one in passed)} if planned.way else {}


def _digests(planned: PlannedTrial) -> dict[str, str]:
    return {
        "resurge.trial": planned.digest,
        "resurge.base_model": planned.base.model.digest,
        "resurge.unlearned_model": planned.unlearned.model.digest,
        "resurge.final_model": planned.final.model.digest,
        "resurge.sample": planned.final.sample.digest,
    }


def _status(trials: Iterable[Measured]) -> RunStatus:
    trials = list(trials)
    if all(measured.is_final for measured in trials):
        return "FINISHED"
    over = all(measured.is_final or measured.status == "failed" for measured in trials)
    return "FAILED" if over else "RUNNING"


def _plan_text(plan: Plan) -> str:
    values = {
        "name": plan.name,
        "stages": {"unique": dict(plan.count()), "naive": dict(plan.count_naive())},
        "steps": {"unique": plan.steps(), "naive": plan.steps_naive()},
        "trials": [
            {"trial": t.digest, "params": dict(t.params), **_digests(t)} for t in plan.trials
        ],
        "tree": [
            {
                "digest": stage.digest,
                "kind": stage.kind,
                "plugin": stage.plugin,
                "version": stage.version,
                "seed": stage.seed,
                "parent": stage.parent.digest if stage.parent else None,
                "inputs": {name: made.digest for name, made in stage.inputs.items()},
                "settings": dict(stage.settings),
            }
            for stage in plan.stages
        ],
    }
    return json.dumps(values, indent=1)
