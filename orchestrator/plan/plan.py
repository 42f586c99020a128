"""Trials -> a tree of unique stages. A pure function: it looks at no store and runs nothing."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet, Target, as_settings
from orchestrator.core.digest import Canonical, canonical_json, sha256
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

Tokens = tuple[tuple[str, str], ...]
"""Words that a trial teaches to its model, each with the word as which it begins."""


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
        self.root = self.marked("base", sweep.base).at(None)
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
        self.works: dict[tuple[Any, ...], _Work] = {}
        self.made: dict[tuple[Any, ...], tuple[Edit, Stage]] = {}
        self.known: dict[str, Stage] = {}
        self.points: dict[tuple[str, str, Tokens], Waypoint] = {}

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
        may_have_way = len(trial.edits) > 1 or any(e.order != "simultaneous" for e in trial.edits)
        has_way = has_way or (
            may_have_way and sum(stage.kind == "unlearn" for stage in final.lineage) > 1
        )
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
        """The model after an edit; `clean` is where the way without unlearning has come to.

        Made once an edit of a model: a grid's trials share their edits.
        """
        key = (parent.digest, clean.digest, id(edit), trial.erased, trial.seed)
        if key not in self.made:
            # The edit is kept with it, so that no other can have its id.
            self.made[key] = edit, self._edited(parent, clean, edit, trial)
        return self.made[key][1]

    def _edited(self, parent: Stage, clean: Stage, edit: Edit, trial: Trial) -> Stage:
        if edit.kind == "unlearn":
            assert isinstance(edit.plugin, UnlearnerPlugin)
            if not edit.plugin.changes:
                return parent
            return self.unlearned(parent, edit, trial)
        if edit.kind == "merge":
            if edit.plugin.settings.scale == 0:
                return parent
            return self.unique(self.marked("merge", edit.plugin).at(parent))
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
        work = self.work(("merge",), lambda: _work("merge", self.merge, {}, {}))
        return self.unique(work.at(parent, inputs={"donor": donor}))

    def unlearn_stage(
        self, parent: Stage, plugin: UnlearnerPlugin, erased: ConceptSet, seed: int
    ) -> Stage:
        def make() -> _Work:
            extra = as_settings(plugin.targets(self.base, erased))
            if files := self.fingerprint(plugin):
                extra["fingerprint"] = files
            if "retained" in plugin.uses:
                extra["retained_prompts"] = list(plugin.kept_prompts(self.base, erased))
            return _work("unlearn", plugin, extra, extra, plugin.needs(self.base, erased))

        work = self.work(("unlearn", plugin, erased), make)
        return work.at(parent, seed if plugin.seeded else None, self.materials(parent, work))

    def materials(self, parent: Stage, work: _Work) -> dict[str, Stage]:
        """What a piece of work needs, made from the model that it changes."""
        return {name: self.material_stage(parent, need) for name, need in work.needs.items()}

    def material_stage(self, model: Stage, need: Need) -> Stage:
        """Made from the model that is to be changed; without a seed, so that all share it."""
        parent = self.material_stage(model, need.of) if need.of else model
        # By its id: the work that names it is kept, and so is it.
        work = self.work(
            ("prepare", id(need)), lambda: self.marked("prepare", need.plugin, need.asked)
        )
        return self.unique(work.at(parent))

    def finetune_stage(self, parent: Stage, edit: Edit, trial: Trial) -> Stage:
        dataset = edit.dataset
        assert isinstance(dataset, DatasetPlugin)  # the sweep refuses a fine-tune without one
        assert isinstance(edit.plugin, RecipePlugin)
        recipe, erased = edit.plugin, trial.erased if dataset.uses_concept else None

        def asked() -> tuple[dict[str, Any], dict[str, Any]]:
            extra = _named(erased) if erased is not None else {}
            identity, full = self.choice(dataset)
            return {**extra, "dataset": identity}, {**extra, "dataset": full}

        def make() -> _Work:
            # Where it is trained is no part of the recipe: what comes of it is merged after that.
            settings = recipe.settings.model_copy(update={"trained_on": "model"})
            there = type(recipe)(settings)
            return _work("finetune", there, *asked(), recipe.needs(self.base))

        # Made once at the base's size, whatever was done to the model before: all share it.
        data = self.work(
            ("data", dataset, erased), lambda: _work("prepare", self.prepare, *asked())
        )
        work = self.work(("finetune", recipe, dataset, erased), make)
        inputs = {"dataset": self.unique(data.at(self.root)), **self.materials(parent, work)}
        return work.at(parent, trial.seed, inputs)

    def point(self, model: Stage, erased: ConceptSet, tokens: Tokens) -> Waypoint:
        """Made once a model and what is erased: many trials share the base and the unlearned.

        `tokens` are those that the trial learns.
        """
        key = (model.digest, erased.name, tokens)
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

    def sample_stage(self, model: Stage, erased: ConceptSet, tokens: Tokens) -> Stage:
        def make() -> _Work:
            probes = self.probes(erased)
            asked: dict[str, Any] = {"probes": [probe.to_json() for probe in probes]}
            named = {t: w for t, w in tokens if any(t in p.prompt.lower() for p in probes)}
            if named:
                asked["placeholders"] = named
            return _work("sample", self.sample, asked, asked)

        return self.work(("sample", erased, tokens), make).at(model)

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
        tokens: Tokens,
    ) -> Stage:
        work = self.work(
            ("score", metric, erased, tokens), lambda: self.score_work(metric, erased, tokens)
        )
        inputs = {}
        if metric.reference:
            inputs["reference"] = self.unique(self.sample_stage(self.root, erased, tokens))
        return work.at(sample if metric.needs == "images" else model, inputs=inputs)

    def score_work(self, metric: MetricPlugin, erased: ConceptSet, tokens: Tokens) -> _Work:
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
        return _work("score", metric, mark, full, uncounted=_paths("sampling", self.sample))

    def marked(
        self, kind: StageKind, plugin: Plugin, asked: Mapping[str, Any] | None = None
    ) -> _Work:
        """Work that is what its plug-in, the files that this names and what is asked make it."""
        files = self.fingerprint(plugin)
        mark = {**(asked or {}), **({"fingerprint": files} if files or asked is None else {})}
        return _work(kind, plugin, mark, mark)

    def work(self, key: tuple[Any, ...], make: Callable[[], _Work]) -> _Work:
        """Made once for the plug-ins and concepts in the key, whichever model it is done to."""
        if key not in self.works:
            self.works[key] = make()
        return self.works[key]

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


def _tokens(trial: Trial) -> Tokens:
    """The words that its edits teach, also where they take no step."""
    recipes = (edit.plugin for edit in trial.edits if isinstance(edit.plugin, RecipePlugin))
    taught = {token: word for recipe in recipes for token, word in recipe.tokens().items()}
    return tuple(sorted(taught.items()))


def _stranger(probes: Iterable[Probe]) -> Target | None:
    """The first concept that is asked for and that the base never knew, with its prompts."""
    asked: dict[str, list[str]] = {}
    for probe in probes:
        if probe.role == "never_known" and probe.prompt not in asked.setdefault(probe.concept, []):
            asked[probe.concept].append(probe.prompt)
    return next((Target(concept, tuple(found)) for concept, found in asked.items()), None)


@dataclass(frozen=True)
class _Work:
    """All of a stage but what it is done to: stages of the same work share it.

    `needs` are materials that are made from the model that it changes.
    """

    kind: StageKind
    plugin: Plugin
    identity: Canonical
    settings: Mapping[str, Any]
    uncounted: frozenset[str]
    needs: Mapping[str, Need]

    def at(
        self,
        parent: Stage | None,
        seed: int | None = None,
        inputs: Mapping[str, Stage] | None = None,
    ) -> Stage:
        """The work done to a stage's result."""
        return Stage(
            kind=self.kind,
            plugin=self.plugin.name,
            version=self.plugin.version,
            identity=self.identity,
            settings=self.settings,
            seed=seed,
            parent=parent,
            inputs=inputs or {},
            uncounted=self.uncounted,
        )


def _work(
    kind: StageKind,
    plugin: Plugin,
    identity: Mapping[str, Any],
    full: Mapping[str, Any],
    needs: Mapping[str, Need] | None = None,
    uncounted: Iterable[str] = (),
) -> _Work:
    return _Work(
        kind=kind,
        plugin=plugin,
        identity=Canonical({**identity, "settings": plugin.settings.identity()}),
        settings=Canonical({**full, "settings": plugin.settings.full()}),
        uncounted=frozenset(uncounted) | _paths("settings", plugin),
        needs=needs or {},
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
