"""Trials -> a tree of unique stages. A pure function: it looks at no store and runs nothing."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet, Target, as_settings
from orchestrator.core.digest import canonical_json, sha256
from orchestrator.core.plugin import (
    BasePlugin,
    DatasetPlugin,
    MetricPlugin,
    Need,
    Plugin,
    PluginKind,
    RecipePlugin,
    UnlearnerPlugin,
)
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage, StageKind
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Edit, Scalar, Trial


@dataclass(frozen=True)
class Waypoint:
    """A model on a trial's way, with the stages that evaluate it.

    `primary` is the score that resurgence is defined on: of the sweep's first metric of single
    pictures; None if it has no such metric. `sample` says what the model is asked, also where no
    pictures are drawn: it is then no work that is done.
    """

    model: Stage
    sample: Stage
    scores: tuple[Stage, ...]
    primary: Stage | None
    is_drawn: bool = True

    def evaluation(self) -> tuple[Stage, ...]:
        """Its pictures and its scores."""
        return ((self.sample,) if self.is_drawn else ()) + self.scores

    def stages(self) -> tuple[Stage, ...]:
        """The model's whole chain (without the base), its materials, and its evaluation."""
        return (*self.model.lineage, *self.evaluation())


@dataclass(frozen=True)
class PlannedTrial:
    """A trial and the three models that its numbers compare.

    `unlearned` is the model after the last unlearning, `final` the one after every edit. A control
    is the same fine-tuning on the base without unlearning; its `unlearned` is the base. `control`
    of an ordinary trial is the digest of its control's final model. `steps_param` is the parameter
    that moves along a trajectory, the last fine-tune's steps; `starts_unlearned` says whether
    nothing lies between the unlearned model and the trajectory. `way` are the other models that a
    trial with several unlearnings comes through, in order; they are evaluated as well.
    """

    trial: Trial
    is_control: bool
    base: Waypoint
    unlearned: Waypoint
    final: Waypoint
    control: str | None
    steps_param: str | None
    starts_unlearned: bool
    way: tuple[Waypoint, ...] = ()

    @cached_property
    def digest(self) -> str:
        """64 hex digits that name the trial: its parameters, its final model and its images.

        Parameters count, so that settings which make no difference at 0 steps stay trials of
        their own.
        """
        return sha256({"params": dict(self.params), "sample": self.final.sample.digest})

    @property
    def key(self) -> str:
        """The first 16 hex digits of the digest."""
        return self.digest[:16]

    @property
    def params(self) -> Mapping[str, Scalar]:
        """The trial's flat parameters, with "control" added."""
        return {**self.trial.params, "control": self.is_control}

    @property
    def steps(self) -> int:
        """Optimiser steps of the last fine-tune."""
        name = self.steps_param
        return int(self.trial.params.get(name) or 0) if name else 0

    def stages(self) -> tuple[Stage, ...]:
        """Every stage that the trial's numbers rest on, parents first, each once."""
        points = (self.base, *self.way, self.unlearned, self.final)
        return tuple(dict.fromkeys(stage for point in points for stage in point.stages()))


@dataclass(frozen=True)
class Input:
    """Something outside of the sweep file that a plug-in's settings point at (a folder, say), as
    it was when the sweep was planned. `settings` are those that differ from their defaults.
    """

    kind: PluginKind
    name: str
    settings: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """Every trial's chain of stages, merged where they agree.

    `inputs` is what the digests rest on beside the sweep file.
    """

    name: str
    root: Stage
    trials: tuple[PlannedTrial, ...]
    stages: tuple[Stage, ...]
    inputs: tuple[Input, ...] = ()

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The axes on which the trials differ, in the order of the sweep file."""
        seen: dict[str, set[Scalar]] = {}
        for planned in self.trials:
            if not planned.is_control:
                for name, value in planned.trial.params.items():
                    seen.setdefault(name, set()).add(value)
        return tuple(name for name, values in seen.items() if len(values) > 1)

    def count(self) -> Counter[StageKind]:
        """Unique stages by kind."""
        return Counter(stage.kind for stage in self.stages)

    def count_naive(self) -> Counter[StageKind]:
        """Stages by kind if every trial ran alone, from the base to its scores."""
        return Counter(stage.kind for trial in self.trials for stage in trial.stages())

    def steps(self) -> int:
        """Optimiser steps of fine-tuning, each trajectory counted once."""
        longest: dict[str, int] = {}
        for stage in self.stages:
            if stage.trajectory:
                longest[stage.trajectory] = max(longest.get(stage.trajectory, 0), stage.steps)
        return sum(longest.values())

    def steps_naive(self) -> int:
        """Optimiser steps of fine-tuning if every trial ran alone."""
        return sum(stage.steps for trial in self.trials for stage in trial.stages())


def make_plan(sweep: Sweep) -> Plan:
    """The plan of a sweep: its trials, their controls, and the merged stages."""
    return Planner(sweep).plan(sweep.trials, sweep.evaluate.controls)


class Planner:
    """Makes plans of one sweep's trials; what several plans share is made once.

    Threads may share one: what it remembers is only ever added to.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.base: BasePlugin = sweep.base
        self.inputs: dict[tuple[str, str, str], Input] = {}
        mark = {"fingerprint": self.fingerprint(sweep.base)}
        self.root = _stage("base", sweep.base, mark, mark, None, None)
        # The base's own guidance and steps where the sweep named none.
        sample = sweep.evaluate.sample
        given = sample.settings.model_dump(exclude_unset=True, exclude_none=True)
        own = {"guidance": sweep.base.guidance, "sampler_steps": sweep.base.sampler_steps}
        self.sample = type(sample)(sample.Settings.model_validate(own | given))
        recipe = find("recipe", "dataset")
        self.prepare = recipe(recipe.Settings())
        merge = find("recipe", "merge")
        self.merge = merge(merge.Settings())
        self.asked: dict[ConceptSet, list[Probe]] = {}
        self.known: dict[str, Stage] = {}
        self.points: dict[tuple[str, str, str], Waypoint] = {}

    def plan(self, trials: Iterable[Trial], controls: bool) -> Plan:
        """The plan of these trials and, if asked for, of their controls."""
        planned = [self.planned(trial, has_control=controls) for trial in trials]
        planned += self.controls(planned)
        stages = dict.fromkeys(stage for one in planned for stage in one.stages())
        inputs = tuple(one for one in self.inputs.values() if one.fingerprint)
        return Plan(self.sweep.name, self.root, tuple(planned), tuple(stages), inputs)

    def controls(self, trials: Iterable[PlannedTrial]) -> list[PlannedTrial]:
        """The same edits without unlearning, each once."""
        found: dict[str, PlannedTrial] = {}
        for planned in trials:
            if planned.control is not None:
                trial, has_way = _without_unlearning(planned.trial), bool(planned.way)
                control = self.planned(trial, is_control=True, has_way=has_way)
                if control.digest not in found or has_way:
                    found[control.digest] = control
        return list(found.values())

    def planned(
        self,
        trial: Trial,
        is_control: bool = False,
        has_control: bool = False,
        has_way: bool = False,
    ) -> PlannedTrial:
        """The trial's models; with `has_way`, or several unlearnings, all that it comes through."""
        final = unlearned = clean = self.root
        for edit in trial.edits:
            final = self.edited(final, clean, edit, trial)
            if edit.kind == "unlearn":
                unlearned = final
            else:
                clean = self.edited(clean, clean, edit, trial)
        has_control = has_control and unlearned is not self.root
        tuned = [edit.key for edit in trial.edits if edit.kind == "finetune"]
        after = [edit.kind for edit in trial.edits if edit.kind != "unlearn"]
        has_way = has_way or sum(stage.kind == "unlearn" for stage in final.lineage) > 1
        way = [s for s in _way(final) if s not in (unlearned, final)] if has_way else []
        erased, tokens = trial.erased, _tokens(trial)
        return PlannedTrial(
            trial=trial,
            is_control=is_control,
            base=self.point(self.root, erased, tokens),
            unlearned=self.point(unlearned, erased, tokens),
            final=self.point(final, erased, tokens),
            control=clean.digest if has_control else None,
            steps_param=f"{tuned[-1]}.steps" if tuned else None,
            starts_unlearned=after == ["finetune"] and trial.edits[-1].kind == "finetune",
            way=tuple(self.point(model, erased, tokens) for model in way),
        )

    def edited(self, parent: Stage, clean: Stage, edit: Edit, trial: Trial) -> Stage:
        """The model after an edit; `clean` is where the way without unlearning has come to."""
        if edit.kind == "unlearn":
            assert isinstance(edit.plugin, UnlearnerPlugin)
            if not edit.plugin.changes:
                return parent
            return self.unlearned(parent, edit, trial)
        if edit.kind == "merge":
            if edit.plugin.settings.scale == 0:
                return parent
            mark = {"fingerprint": self.fingerprint(edit.plugin)}
            return self.unique(_stage("merge", edit.plugin, mark, mark, None, parent))
        if edit.plugin.settings.steps == 0:
            return parent
        if edit.plugin.settings.trained_on == "model" or parent is clean:
            return self.unique(self.finetune_stage(parent, edit, trial))
        return self.merged(parent, self.unique(self.finetune_stage(clean, edit, trial)))

    def unlearned(self, parent: Stage, edit: Edit, trial: Trial) -> Stage:
        """The model after an unlearning: of all at once, one after another, or each apart."""
        assert isinstance(edit.plugin, UnlearnerPlugin)
        made: list[Stage] = []
        for erased in edit.erases(trial.erased):
            begin = made[-1] if made and edit.order == "continual" else parent
            made.append(self.unique(self.unlearn_stage(begin, edit.plugin, erased, trial.seed)))
        if edit.order != "independent":
            return made[-1]
        first, *others = made
        return functools.reduce(self.merged, others, first)

    def merged(self, parent: Stage, donor: Stage) -> Stage:
        """`parent` with what `donor` changed of the model that it was made from."""
        return self.unique(_stage("merge", self.merge, {}, {}, None, parent, {"donor": donor}))

    def unlearn_stage(
        self, parent: Stage, plugin: UnlearnerPlugin, erased: ConceptSet, seed: int
    ) -> Stage:
        extra = as_settings(plugin.targets(self.base, erased))
        if files := self.fingerprint(plugin):
            extra["fingerprint"] = files
        if "retained" in plugin.uses:
            extra["retained_prompts"] = list(plugin.kept_prompts(self.base, erased))
        needs = plugin.needs(self.base, erased)
        inputs = {name: self.material_stage(parent, need) for name, need in needs.items()}
        own_seed = seed if plugin.seeded else None
        return _stage("unlearn", plugin, extra, extra, own_seed, parent, inputs)

    def material_stage(self, model: Stage, need: Need) -> Stage:
        """Made from the model that is to be changed; without a seed, so that all share it."""
        parent = self.material_stage(model, need.of) if need.of else model
        files = self.fingerprint(need.plugin)
        asked = {**need.asked, **({"fingerprint": files} if files else {})}
        return self.unique(_stage("prepare", need.plugin, asked, asked, None, parent))

    def finetune_stage(self, parent: Stage, edit: Edit, trial: Trial) -> Stage:
        dataset = edit.dataset
        assert isinstance(dataset, DatasetPlugin)  # the sweep refuses a fine-tune without one
        extra = _named(trial.erased) if dataset.uses_concept else {}
        identity, full = ({**extra, "dataset": chosen} for chosen in self.choice(dataset))
        # Made once at the base's size, whatever was done to the model before: all share it.
        data = self.unique(_stage("prepare", self.prepare, identity, full, None, self.root))
        assert isinstance(edit.plugin, RecipePlugin)
        needs = edit.plugin.needs(self.base)
        made = {name: self.material_stage(parent, need) for name, need in needs.items()}
        inputs = {"dataset": data, **made}
        # Where it is trained is no part of the recipe: what comes of it is merged after that.
        settings = edit.plugin.settings.model_copy(update={"trained_on": "model"})
        recipe = type(edit.plugin)(settings)
        return _stage("finetune", recipe, identity, full, trial.seed, parent, inputs)

    def point(self, model: Stage, erased: ConceptSet, tokens: Mapping[str, str]) -> Waypoint:
        """Made once a model and what is erased: many trials share the base and the unlearned.

        `tokens` are those that the trial learns.
        """
        key = (model.digest, erased.name, canonical_json(tokens))
        if key not in self.points:
            draws = self.sweep.evaluate.draws
            sample = self.unique(self.sample_stage(model, erased, tokens))
            kind = "unlearn" if model.unlearns else model.kind
            metrics = [m for m in self.sweep.evaluate.metrics if kind in m.of]
            scores = [
                self.unique(self.score_stage(m, model, sample, erased, tokens)) for m in metrics
            ]
            of_pictures = (
                score
                for metric, score in zip(metrics, scores, strict=True)
                if metric.needs == "images" and metric.per_picture
            )
            primary = next(of_pictures, None)
            self.points[key] = Waypoint(model, sample, tuple(scores), primary, draws)
        return self.points[key]

    def sample_stage(self, model: Stage, erased: ConceptSet, tokens: Mapping[str, str]) -> Stage:
        probes = self.probes(erased)
        asked: dict[str, Any] = {"probes": [probe.to_json() for probe in probes]}
        named = {t: w for t, w in tokens.items() if any(t in p.prompt.lower() for p in probes)}
        if named:
            asked["placeholders"] = named
        return _stage("sample", self.sample, asked, asked, None, model)

    def probes(self, erased: ConceptSet) -> list[Probe]:
        """Asked once a set of concepts: an evaluation set may read a file."""
        if erased not in self.asked:
            self.asked[erased] = self.sweep.evaluate.probes(self.base, erased)
            for one in self.sweep.evaluate.sets:
                self.fingerprint(one)
        return self.asked[erased]

    def score_stage(
        self,
        metric: MetricPlugin,
        model: Stage,
        sample: Stage,
        erased: ConceptSet,
        tokens: Mapping[str, str],
    ) -> Stage:
        mark: dict[str, Any] = {"fingerprint": self.fingerprint(metric)}
        if metric.needs == "pipeline":
            asked: dict[str, list[str]] = {concept: [] for concept in erased.concepts}
            probes = self.probes(erased)
            for probe in probes:
                if probe.role == "erased" and probe.prompt not in asked[probe.concept]:
                    asked[probe.concept].append(probe.prompt)
            mark |= as_settings([Target(c, tuple(prompts)) for c, prompts in asked.items()])
            if metric.strangers and (stranger := _stranger(probes)) is not None:
                mark["never_known"] = as_settings([stranger])
            if tokens:
                mark["placeholders"] = dict(tokens)
        full = dict(mark)
        if metric.samples:
            mark["sampling"] = self.sample.settings.identity()
            full["sampling"] = self.sample.settings.full()
        inputs = {}
        if metric.reference:
            inputs["reference"] = self.unique(self.sample_stage(self.root, erased, tokens))
        parent = sample if metric.needs == "images" else model
        uncounted = _paths("sampling", self.sample)
        return _stage("score", metric, mark, full, None, parent, inputs, uncounted)

    def choice(self, plugin: Plugin) -> tuple[dict[str, Any], dict[str, Any]]:
        """A plug-in inside another stage's settings: what is hashed, and all of it."""
        mark = {
            "name": plugin.name,
            "version": plugin.version,
            "fingerprint": self.fingerprint(plugin),
        }
        return (
            {**mark, "settings": plugin.settings.identity()},
            {**mark, "settings": plugin.settings.full()},
        )

    def fingerprint(self, plugin: Plugin) -> str:
        """Asked once for a plug-in and its settings: it may read a whole folder."""
        settings = plugin.settings.identity()
        key = (plugin.kind, plugin.name, canonical_json(settings))
        if key not in self.inputs:
            found = plugin.fingerprint()
            self.inputs[key] = Input(plugin.kind, plugin.name, settings, found)
        return self.inputs[key].fingerprint

    def unique(self, stage: Stage) -> Stage:
        return self.known.setdefault(stage.digest, stage)


def _tokens(trial: Trial) -> dict[str, str]:
    """The words that its edits teach, also where they take no step."""
    recipes = (edit.plugin for edit in trial.edits if isinstance(edit.plugin, RecipePlugin))
    return {token: word for recipe in recipes for token, word in recipe.tokens().items()}


def _stranger(probes: Iterable[Probe]) -> Target | None:
    """The first concept that is asked for and that the base never knew, with its prompts."""
    asked: dict[str, list[str]] = {}
    for probe in probes:
        if probe.role == "never_known" and probe.prompt not in asked.setdefault(probe.concept, []):
            asked[probe.concept].append(probe.prompt)
    return next((Target(concept, tuple(found)) for concept, found in asked.items()), None)


def _stage(
    kind: Any,
    plugin: Plugin,
    identity: Mapping[str, Any],
    full: Mapping[str, Any],
    seed: int | None,
    parent: Stage | None,
    inputs: Mapping[str, Stage] | None = None,
    uncounted: Iterable[str] = (),
) -> Stage:
    return Stage(
        kind=kind,
        plugin=plugin.name,
        version=plugin.version,
        identity={**identity, "settings": plugin.settings.identity()},
        settings={**full, "settings": plugin.settings.full()},
        seed=seed,
        parent=parent,
        inputs=inputs or {},
        uncounted=frozenset(uncounted) | _paths("settings", plugin),
    )


def _named(erased: ConceptSet) -> dict[str, Any]:
    """What a data set that depends on what was erased is told."""
    if len(erased.concepts) == 1:
        return {"concept": erased.concepts[0]}
    return {"concepts": list(erased.concepts)}


def _way(final: Stage) -> list[Stage]:
    """The models that a model comes from, itself included, and those whose change was added."""
    own = set(final.ancestry())
    return [s for s in final.lineage if s.is_model and (s in own or s.kind == "unlearn")]


def _paths(of: str, plugin: Plugin) -> frozenset[str]:
    return frozenset(f"{of}.{name}" for name in plugin.settings.uncounted())


def _without_unlearning(trial: Trial) -> Trial:
    """The trial's control: its other edits, its unlearning parameters gone."""
    gone = tuple(f"{edit.key}." for edit in trial.edits if edit.kind == "unlearn")
    params = {k: v for k, v in trial.params.items() if not k.startswith(gone)}
    params |= {f"{prefix}method": "none" for prefix in gone}
    edits = tuple(edit for edit in trial.edits if edit.kind != "unlearn")
    return Trial(trial.erased, edits, trial.seed, params)
