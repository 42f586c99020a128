"""A study in pictures, and which settings matter in it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestrator.study.tried import Tried, TriedState
from orchestrator.sweep.search import Goal
from orchestrator.sweep.space import Categorical, Dimension, Space

# It says of few trials that it knows little, on a terminal that shows progress.
warnings.filterwarnings("ignore", module=r"optuna\.importance")
optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("optuna").propagate = False

_STATES: Mapping[TriedState, TrialState] = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def directions(goals: Sequence[Goal]) -> list[StudyDirection]:
    """The goals' directions in Optuna's words."""
    up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    return [up if goal.maximize else down for goal in goals]


def in_memory(trials: Sequence[Tried], space: Space, goals: Sequence[Goal]) -> optuna.Study:
    """A study of the same numbers to look at, in which repeats count for nothing.

    Args:
        trials: all of a study, by number.
    """
    study = optuna.create_study(directions=directions(goals))
    study.set_metric_names([goal.name for goal in goals])
    study.add_trials([_frozen(trial, space) for trial in trials])
    return study


def importance(study: optuna.Study) -> dict[str, float]:
    """How much each setting matters for the first goal (PED-ANOVA, Watanabe et al. 2023).

    Empty where fewer than two trials have a value.
    """
    if len(_done(study)) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=_first_loss(study)
        )
    except (ValueError, RuntimeError):
        return {}
    return {name: float(share) for name, share in found.items()}


def plots(study: optuna.Study, goals: Sequence[Goal]) -> dict[str, Any]:
    """Optuna's interactive plots by name, as plotly figures; none of fewer than two trials."""
    import optuna.visualization as draw

    done = _done(study)
    if len(done) < 2:
        return {}
    # A study of one goal Optuna knows to draw.
    target = None if len(goals) == 1 else lambda trial: float(trial.values[0])
    label = goals[0].name
    figures: dict[str, Any] = {}
    if len(goals) > 1:
        figures["pareto_front"] = draw.plot_pareto_front(study)
    figures["history"] = draw.plot_optimization_history(study, target=target, target_name=label)
    # The trials may have no setting in common, or one value only.
    with contextlib.suppress(ValueError, RuntimeError):
        figures["importance"] = draw.plot_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            target=_first_loss(study),
            target_name=label,
        )
    figures["slice"] = draw.plot_slice(study, target=target, target_name=label)
    if len({name for trial in done for name in trial.params}) > 1:
        figures["contour"] = draw.plot_contour(study, target=target, target_name=label)
    return figures


def _first_loss(study: optuna.Study) -> Callable[[optuna.trial.FrozenTrial], float] | None:
    """The first goal for PED-ANOVA, which takes less of a target for better; None: the only one."""
    if len(study.directions) == 1:
        return None
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return lambda trial: sign * float(trial.values[0])


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _frozen(tried: Tried, space: Space) -> optuna.trial.FrozenTrial:
    if tried.state == "running" or tried.repeat_of is not None:
        return optuna.trial.create_trial(state=TrialState.FAIL)
    distributions = {d.name: _distribution(d) for d in space.dimensions if d.name in tried.point}
    return optuna.trial.create_trial(
        state=_STATES[tried.state],
        values=list(tried.values) or None,
        params=space.searched(tried.point),
        distributions=distributions,
        intermediate_values=dict(tried.curve),
        constraints={"bounds": 0.0 if tried.is_feasible else 1.0},
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Categorical):
        return CategoricalDistribution(dimension.labels)
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.is_int:
        return IntDistribution(int(low), int(high), log=log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=log, step=dimension.step)
