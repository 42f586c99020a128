"""Stages and trials in a few words, for trees, progress and run names."""

from __future__ import annotations

from orchestrator.core.concepts import concepts_of, joined
from orchestrator.core.stage import Stage
from orchestrator.core.text import axis_value, number, one_line, shortened
from orchestrator.plan.plan import Plan, PlannedTrial

LONGEST_VALUE = 32
_ALWAYS_NAMED = (".method", ".dataset", ".update", ".learning_rate")


def stage_label(stage: Stage, with_steps: bool = True) -> str:
    """A stage by what sets it apart from its siblings."""
    words: list[str] = [stage.kind]
    if stage.kind == "finetune":
        words += [*_dataset(stage), *_settings(stage, {"steps"})]
        words += [f"{stage.steps} steps"] if with_steps else []
    elif stage.kind == "unlearn":
        words += [stage.plugin, one_line(_erased(stage)), *_settings(stage, set())]
    elif stage.kind == "merge" and "donor" in stage.inputs:
        words += [stage_label(stage.inputs["donor"], with_steps)]
    elif stage.kind == "merge":
        words += [stage.plugin, *_settings(stage, set())]
    elif stage.kind == "sample":
        words += [f"{len(stage.settings['probes'])} prompts"]
    elif stage.kind == "prepare" and "dataset" in stage.settings:
        words += _dataset(stage)
    elif stage.kind == "prepare":
        words += [stage.plugin, *_settings(stage, set())]
    else:
        words += [stage.plugin]
    if stage.seed is not None:
        words.append(f"seed {stage.seed}")
    return " ".join(words)


def trial_label(plan: Plan, planned: PlannedTrial, with_steps: bool = True) -> str:
    """'esd related lr=1e-3 full seed 0 · 100 steps'; a control begins with 'control'."""
    params = dict(planned.trial.params)
    steps = params.pop(planned.steps_param or "", None)
    seed = params.pop("seed", None)
    shown = [a for a in params if a in plan.varying or a.endswith(_ALWAYS_NAMED)]
    named = [axis for axis in shown if params[axis] not in (None, "none")]
    words = [axis_value(axis, params[axis], "=") for axis in named]
    words = [*(["control"] if planned.is_control else []), *words]
    words += [f"seed {seed}"] if seed is not None else []
    return " ".join(words) + (f" · {steps} steps" if with_steps and steps is not None else "")


def _erased(stage: Stage) -> str:
    return joined(concepts_of(stage.settings))


def _dataset(stage: Stage) -> list[str]:
    """The data set's name and what was set of it."""
    chosen = stage.identity["dataset"]
    return [chosen["name"], *(f"{k}={_brief(v)}" for k, v in chosen.get("settings", {}).items())]


def _brief(value: object) -> str:
    """'related(size=64)' for a data set inside another; long text is cut."""
    if isinstance(value, dict):
        words = []
        for name, settings in value.items():
            inner = ", ".join(f"{key}={_brief(set_to)}" for key, set_to in settings.items())
            words.append(f"{name}({inner})" if inner else name)
        return ", ".join(words)
    return shortened(number(value), LONGEST_VALUE)


def _settings(stage: Stage, leave_out: set[str]) -> list[str]:
    chosen = stage.identity["settings"]
    return [f"{k}={number(v)}" for k, v in chosen.items() if k not in leave_out]
