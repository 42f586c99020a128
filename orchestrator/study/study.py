"""A study: what was asked, what was told, who proposes next.

One thread owns a study. A trial that was running when the head died is still running when the
study is opened again: it keeps its number and its settings, and what was not chosen yet is chosen
then.
"""

from __future__ import annotations

import functools
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import optuna
from optuna.trial import TrialState

from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import file_of
from orchestrator.study.optuna_views import directions
from orchestrator.study.storage import open_storage, unusable, using
from orchestrator.study.tried import Tried, TriedState
from orchestrator.sweep.search import REDUCTION, Goal, Search
from orchestrator.sweep.space import Categorical, Dimension, Space, point_key

# Names of metrics and groups in TPE are called experimental; both do what we need.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# A search by `cmaes` says so itself.
warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")

P = ParamSpec("P")
T = TypeVar("T")
IDENTITY = "resurge.identity"
MAX_REPEATS = 10
"""So many known points in a row, and the next one is drawn by chance among the others."""
MAX_DRAWS = 1_000
_STATES: Mapping[TrialState, TriedState] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def _of_its_storage(method: Callable[P, T]) -> Callable[P, T]:
    """A method of a study: what a driver raises is an error of ours."""

    @functools.wraps(method)
    def called(*given: P.args, **named: P.kwargs) -> T:
        study: Any = given[0]
        with using(study._storage):
            return method(*given, **named)

    return called


class Study:
    """Asks for points and is told their values; everything it knows is in its storage.

    Args:
        storage: a database URL, or journal:///path.
        name: what the study is called there.
        search: what is sought, and how.
        space: where, for this study.
        rungs: the step counts at which a trial may be stopped.
        identity: JSON values of all that a value hangs on; another study must not go on with it.

    Raises:
        ResurgeError: the storage cannot be used, or holds a study of that name that is another.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        search: Search,
        space: Space,
        rungs: Sequence[int] = (),
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._storage = storage
        self.goals = search.goals
        self.space = space
        self.budget = search.settings.trials
        self._rng_seed = search.settings.seed + zlib.crc32(name.encode())
        self._is_grid = search.settings.sampler == "grid"
        self._study = _create(storage, name, self.goals)
        mine = _whole_identity(identity or {}, self.goals, self.space)
        with using(storage):
            if IDENTITY not in self._study.user_attrs:  # it is new
                self._study.set_metric_names([goal.name for goal in self.goals])
                self._study.set_user_attr(IDENTITY, mine)
            _refuse_another(self._study, mine)
            begun = len(self._study.get_trials(deepcopy=False))
        self._rng = np.random.default_rng([self._rng_seed, begun])
        # A sampler that begins again with the same seed would propose the same points again.
        self._study.sampler = _sampler(search, space, (self._rng_seed + 7919 * begun) % 2**32)
        self._study.pruner = _pruner(search, rungs)
        self.known: dict[str, int] = {}
        for tried in self.tried():
            if tried.state != "running" and tried.repeat_of is None:
                self.known.setdefault(point_key(tried.point), tried.number)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, or nothing new is left to try."""
        most = self.budget if self.space.size is None else min(self.budget, self.space.size)
        return len(self.known) >= most

    @_of_its_storage
    def adopt(self) -> list[Tried]:
        """The trials that were running, or next in line, when the study was last closed."""
        states = (TrialState.RUNNING, TrialState.WAITING)
        found = []
        for frozen in self._study.get_trials(deepcopy=False, states=states):
            is_waiting = frozen.state == TrialState.WAITING
            trial = self._study.ask() if is_waiting else self._live(frozen.number)
            if not self._is_repeat(trial.number, self._choose(trial)):
                found.append(self.one(trial.number))
        return found

    @_of_its_storage
    def ask(self) -> Tried | None:
        """A new point; None if the budget is spent or none is left. Known ones are told at once."""
        repeats = 0
        while not self.is_over:
            if self._is_grid or repeats >= MAX_REPEATS:
                fresh = self._fresh()
                if fresh is None:
                    return None
                self._study.enqueue_trial(self.space.searched(fresh))
            trial = self._study.ask()
            point = self._choose(trial)
            if not self._is_repeat(trial.number, point):
                return self.one(trial.number)
            repeats += 1
        return None

    @_of_its_storage
    def report(self, number: int, step: int, value: float) -> bool:
        """A value on the way; whether the trial should stop there."""
        trial = self._live(number)
        if step not in self.one(number).curve:  # an adopted trial passes its rungs again
            trial.report(value, step)
        return bool(trial.should_prune())

    @_of_its_storage
    def tell(
        self,
        number: int,
        values: Sequence[float],
        numbers: Mapping[str, float],
        violations: Mapping[str, float],
    ) -> None:
        """A trial's values, in the order of the goals; a violation above 0 makes it infeasible."""
        self._remember(number, numbers, violations)
        self._study.tell(number, list(values))

    @_of_its_storage
    def tell_pruned(
        self, number: int, numbers: Mapping[str, float], violations: Mapping[str, float]
    ) -> None:
        """A trial was stopped; what it measured stays."""
        self._remember(number, numbers, violations)
        self._study.tell(number, state=TrialState.PRUNED)

    @_of_its_storage
    def tell_failed(self, number: int, reason: str) -> None:
        """A trial has no value."""
        self._live(number).set_user_attr("resurge.reason", reason)
        self._study.tell(number, state=TrialState.FAIL)

    @_of_its_storage
    def tried(self) -> list[Tried]:
        """Every trial so far, repeats too, by number."""
        return [_tried(t, self.space) for t in self._study.get_trials(deepcopy=False)]

    def _live(self, number: int) -> optuna.trial.Trial:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return optuna.trial.Trial(self._study, frozen._trial_id)

    @_of_its_storage
    def one(self, number: int) -> Tried:
        """A trial as it is now."""
        return _tried(self._study.get_trials(deepcopy=False)[number], self.space)

    def _choose(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        """The trial's point; what it has chosen before stays."""
        chosen: dict[str, Any] = {}
        for dimension in self.space.active(chosen):
            chosen[dimension.name] = _suggest(trial, dimension)
        point = {**self.space.fixed, **chosen}
        trial.set_user_attr("resurge.point", point)
        return point

    def _is_repeat(self, number: int, point: Mapping[str, Any]) -> bool:
        """Whether the point is known: it is then told at once. A new one is known from now on."""
        earlier = self.known.setdefault(point_key(point), number)
        if earlier == number:
            return False
        trial, first = self._live(number), self._study.get_trials(deepcopy=False)[earlier]
        trial.set_user_attr("resurge.repeat_of", earlier)
        if first.state == TrialState.COMPLETE:
            _constrain(trial, first.constraints)
            self._study.tell(number, first.values)
        else:
            self._study.tell(number, state=TrialState.FAIL)
        return True

    def _fresh(self) -> dict[str, Any] | None:
        """A point that is not known: the next of a grid, or one by chance."""
        points = iter(() if self.space.size is None else self.space.points())
        if not self._is_grid:
            drawn = (self.space.draw(self._rng) for _ in range(MAX_DRAWS))
            points = itertools.chain(drawn, points)
        return next((point for point in points if point_key(point) not in self.known), None)

    def _remember(
        self, number: int, numbers: Mapping[str, float], violations: Mapping[str, float]
    ) -> None:
        trial = self._live(number)
        trial.set_user_attr("resurge.numbers", dict(numbers))
        _constrain(trial, violations)


def _constrain(trial: optuna.trial.Trial, violations: Mapping[str, float]) -> None:
    """In their order, by which some samplers tell them apart."""
    known = trial.constraints  # an adopted trial may have some
    for name, violation in violations.items():
        if name not in known:
            trial.set_constraint(name, violation)


def _whole_identity(
    identity: Mapping[str, Any], goals: Sequence[Goal], space: Space
) -> dict[str, Any]:
    described = [[goal.name, goal.maximize] for goal in goals]
    return {**identity, "goals": described, "space": space.described()}


def _refuse_another(study: optuna.Study, mine: Mapping[str, Any]) -> None:
    before = study.user_attrs.get(IDENTITY, mine)
    if canonical_json(before) != canonical_json(mine):
        raise ResurgeError(
            f"the study {study.study_name!r} was begun with another sweep: "
            f"{'; '.join(_changes(before, mine))}. Its trials would not compare: give the "
            f"sweep another `name` to begin a new study, or put the old values back"
        )


def read_tried(
    storage: str,
    name: str,
    search: Search,
    space: Space,
    identity: Mapping[str, Any] | None = None,
) -> list[Tried]:
    """The trials of a study; none if it is not there. Nothing is written.

    Raises:
        ResurgeError: as of `Study`.
    """
    if (place := file_of(storage)) is not None and not place.exists():
        return []
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(storage))
    except KeyError:
        return []
    except Exception as error:
        raise unusable(storage, error) from error
    with using(storage):
        _refuse_another(study, _whole_identity(identity or {}, search.goals, space))
        return [_tried(trial, space) for trial in study.get_trials(deepcopy=False)]


def _create(storage: str, name: str, goals: Sequence[Goal]) -> optuna.Study:
    try:
        return optuna.create_study(
            storage=open_storage(storage),
            study_name=name,
            directions=directions(goals),
            load_if_exists=True,
        )
    except Exception as error:
        raise unusable(storage, error) from error


def _suggest(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    if isinstance(dimension, Categorical):
        chosen = trial.suggest_categorical(dimension.name, dimension.labels)
        return dimension.values[dimension.labels.index(chosen)]
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.is_int:
        step = int(dimension.step or 1)
        return dimension.snap(
            trial.suggest_int(dimension.name, int(low), int(high), step=step, log=log)
        )
    value = trial.suggest_float(dimension.name, low, high, step=dimension.step, log=log)
    return dimension.snap(value)


def _sampler(search: Search, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    kind = search.settings.sampler
    if kind == "tpe":
        # In a space with conditions, settings that stand together are modelled together.
        is_conditional = any(dimension.when for dimension in space.dimensions)
        return optuna.samplers.TPESampler(
            seed=seed, group=is_conditional, multivariate=True, constant_liar=True
        )
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    if kind == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if kind == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(search: Search, rungs: Sequence[int]) -> optuna.pruners.BasePruner:
    kind = search.settings.pruner
    if kind == "median" and rungs:
        return optuna.pruners.MedianPruner()
    if kind == "hyperband" and len(rungs) > 1:
        # Optuna decides where least * REDUCTION**k steps are reached: at the k-th of our rungs.
        least = min(rung // REDUCTION**k for k, rung in enumerate(rungs[:-1]))
        return optuna.pruners.HyperbandPruner(
            min_resource=max(1, least), max_resource=rungs[-1], reduction_factor=REDUCTION
        )
    return optuna.pruners.NopPruner()


def _tried(frozen: optuna.trial.FrozenTrial, space: Space) -> Tried:
    attrs = frozen.user_attrs
    return Tried(
        number=frozen.number,
        state=_STATES[frozen.state],
        point=attrs.get("resurge.point", dict(space.fixed)),
        values=tuple(frozen.values or ()),
        numbers=attrs.get("resurge.numbers", {}),
        is_feasible=all(v <= 0 for v in frozen.constraints.values()),
        reason=attrs.get("resurge.reason"),
        repeat_of=attrs.get("resurge.repeat_of"),
        curve=dict(frozen.intermediate_values),
        started_ms=_ms(frozen.datetime_start),
        ended_ms=_ms(frozen.datetime_complete),
    )


def _ms(time: Any) -> int:
    return round(time.timestamp() * 1000) if time is not None else 0


def _changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """'space.finetune.steps was … and is …' for everything that differs."""
    if canonical_json(before) == canonical_json(now):
        return
    was, is_ = _parts(before), _parts(now)
    if was and is_ and not (isinstance(before, list) and len(was) != len(is_)):
        for name in dict.fromkeys((*was, *is_)):
            yield from _changes(was.get(name), is_.get(name), f"{where}{name}")
    else:
        yield f"{where.lstrip('.')} was {canonical_json(before)} and is {canonical_json(now)}"


def _parts(value: Any) -> dict[str, Any]:
    """What a change can be narrowed to: a mapping's values, or a list's if some are mappings."""
    if isinstance(value, Mapping):
        return {f".{name}": part for name, part in value.items()}
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return {f"[{index}]": part for index, part in enumerate(value)}
    return {}
