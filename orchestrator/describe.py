"""Stages and trials in a few words, for trees, progress and run names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.plan import Plan, PlannedTrial
from orchestrator.stage import Stage


def number(value: object) -> str:
    """A setting's value as people write it: 0.001 is 1e-3, 0.5 is 0.5."""
    if not isinstance(value, float):
        return str(value)
    if value and not 0.01 <= abs(value) < 10_000:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def stage_label(stage: Stage, with_steps: bool = True) -> str:
    """A stage by what sets it apart from its siblings."""
    words: list[str] = [stage.kind]
    if stage.kind == "finetune":
        words += [stage.settings["dataset"]["name"], *_settings(stage, {"steps"})]
        words += [f"{stage.steps} steps"] if with_steps else []
    elif stage.kind == "unlearn":
        words += [stage.plugin, stage.settings["concept"], *_settings(stage, set())]
    elif stage.kind == "sample":
        words += [f"{len(stage.settings['probes'])} prompts"]
    else:
        words += [stage.plugin]
    if stage.seed is not None:
        words.append(f"seed {stage.seed}")
    return " ".join(words)


def varying(plan: Plan) -> list[str]:
    """The axes on which the plan's trials differ, in the order of the sweep file."""
    seen: dict[str, set[Any]] = {}
    for planned in plan.trials:
        if not planned.is_control:
            for name, value in planned.trial.params.items():
                seen.setdefault(name, set()).add(value)
    return [name for name, values in seen.items() if len(values) > 1]


def trial_label(planned: PlannedTrial, axes: Iterable[str]) -> str:
    """A trial by its values on the given axes."""
    return params_label(planned.params, axes) + (" (control)" if planned.is_control else "")


def params_label(params: Mapping[str, Any], axes: Iterable[str]) -> str:
    """'esd related learning_rate=1e-3 steps=100 seed=0'."""
    words = []
    for axis in axes:
        value = params.get(axis)
        if value is None:
            continue
        plain = axis.endswith((".method", ".dataset", ".adapter")) or axis == "concept"
        words.append(str(value) if plain else f"{axis.rpartition('.')[2]}={number(value)}")
    return " ".join(words)


def _settings(stage: Stage, leave_out: set[str]) -> list[str]:
    chosen = stage.identity["settings"]
    return [f"{k}={number(v)}" for k, v in chosen.items() if k not in leave_out]
