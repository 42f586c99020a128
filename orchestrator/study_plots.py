"""A study in pictures, and which settings matter in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from orchestrator.search_settings import Goal


def importance(study: optuna.Study) -> dict[str, float]:
    """How much each setting matters for the first goal (PED-ANOVA, Watanabe et al. 2023).

    Of the settings that every trial has; empty where too few trials have a value.
    """
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=_first_value(len(study.directions))
        )
    except (ValueError, RuntimeError):
        return {}
    return {name: float(share) for name, share in found.items()}


def plots(study: optuna.Study, goals: Sequence[Goal]) -> dict[str, Any]:
    """Optuna's interactive plots by name, as plotly figures; none of fewer than two trials."""
    return dict(_plots(study, goals))


def _first_value(goals: int) -> Callable[[optuna.trial.FrozenTrial], float] | None:
    """What to draw of a trial; None for a study of one goal, which Optuna knows to draw."""
    return None if goals == 1 else lambda trial: float(trial.values[0])


def _plots(study: optuna.Study, goals: Sequence[Goal]) -> Iterator[tuple[str, Any]]:
    import optuna.visualization as draw

    target, label = _first_value(len(goals)), goals[0].name
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 2:
        return
    if len(goals) > 1:
        yield "pareto_front", draw.plot_pareto_front(study)
    yield "history", draw.plot_optimization_history(study, target=target, target_name=label)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    # The trials may have no setting in common, or one value only.
    with contextlib.suppress(ValueError, RuntimeError):
        yield (
            "importance",
            draw.plot_param_importances(
                study, evaluator=evaluator, target=target, target_name=label
            ),
        )
    yield "slice", draw.plot_slice(study, target=target, target_name=label)
    if len({name for trial in done for name in trial.params}) > 1:
        yield "contour", draw.plot_contour(study, target=target, target_name=label)
