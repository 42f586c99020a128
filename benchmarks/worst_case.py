"""The worst case by method on the bundled model, and what sharing saved of its cost.

`make worst-case` searches, then writes docs/worst-case.md with the curves of the searches; every
figure comes from the studies and the store.

    python -m benchmarks.worst_case FOLDER [--home FOLDER]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence import interval, score, write_page
from benchmarks.methods import head, line, wrapped
from orchestrator.core.plugin import UnlearnerPlugin
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage
from orchestrator.home import Home
from orchestrator.plan.plan import Plan
from orchestrator.results.figures import COLOURS
from orchestrator.run.job import open_job
from orchestrator.store.store import Store
from orchestrator.study.points import PointPlanner
from orchestrator.study.tried import Tried, best_so_far, counted
from orchestrator.study.words import goals_text, point_text, values_text
from orchestrator.study.worst_case import COVERAGE_RADIUS, Confirmed, WorstCase

SWEEP = "sweeps/worst_case.yaml"
FIGURE = "worst-case.png"
PASSES_A_STEP = 3 * 16
"""UNet passes of a fine-tuning step with the default batch: forward, and backward as two."""


@dataclass(frozen=True)
class Work:
    """Optimiser steps of fine-tuning, and the unlearning in as many steps' worth of passes."""

    finetuning: int
    unlearning: int

    @property
    def total(self) -> int:
        return self.finetuning + self.unlearning

    def __add__(self, other: Work) -> Work:
        return Work(self.finetuning + other.finetuning, self.unlearning + other.unlearning)


def page(home: Home, folder: Path) -> Iterator[str]:
    """The page, line by line; its figure is written beside it."""
    job = open_job(SWEEP, (), home)
    sweep, points, store, cases = job.sweep, job.planner, job.store, job.worst_cases()
    search = points.search
    yield "# The worst case on the bundled model"
    yield ""
    bounds = " and ".join(f"`{bound.name}` {bound}" for bound in search.subject_to)
    yield from wrapped(
        f"Which benign fine-tuning brings the most of an erased {sweep.concepts[0]} back? For each "
        f"method a search of {search.settings.trials} trials ({goals_text(search.goals)}, with "
        f"{bounds}; sampler {search.settings.sampler}, pruner {search.settings.pruner}) over:"
    )
    yield ""
    for dimension in search.space.dimensions:
        yield f"- `{dimension.name}`: {values_text(dimension)}"
    yield ""
    yield from wrapped(
        f"The best {search.confirm.top} settings were run again on {search.confirm.seeds} seeds "
        "that the search never saw. *Searched* is the search's own figure, the largest of many "
        "noisy ones and so too large by chance; *confirmed* the mean on the fresh seeds with its "
        "95% interval. Written by `make worst-case`."
    )
    yield ""
    yield from rows(cases)
    yield ""
    yield from wrapped(" ".join(sentences(cases)))
    draw(cases, folder / FIGURE)
    yield ""
    yield f"![The best value after each trial]({FIGURE})"
    yield ""
    yield "## Every confirmed setting"
    yield ""
    yield from all_confirmed(cases)
    yield ""
    yield "## What was tried"
    yield ""
    yield from tried(cases)
    yield ""
    yield "## What it cost"
    yield ""
    yield from costs(points, cases, store)


def rows(cases: Sequence[WorstCase]) -> Iterator[str]:
    names = ("method", "worst settings", "searched", "confirmed", "control", "retained")
    yield from head(*names)
    for case in cases:
        if (worst := case.worst) is None:
            yield from line(_name(case), "none kept every bound", "–", "–", "–", "–")
        else:
            yield from line(_name(case), *_cells(case, worst))


def _cells(case: WorstCase, one: Confirmed) -> list[str]:
    setting = one.setting
    goal = interval(one.goal) if one.goal else "–"
    where = point_text(one.tried.point, case.space)
    return [where, f"{one.searched:+.2f}", goal, score(setting.control), score(setting.retained)]


def _name(case: WorstCase) -> str:
    return f"`{', '.join(str(value) for value in case.fixed.values())}`"


def sentences(cases: Sequence[WorstCase]) -> Iterator[str]:
    """What the table shows."""
    known = [(case, case.worst) for case in cases if case.worst and case.worst.goal]
    known.sort(key=lambda pair: -(pair[1].goal.value if pair[1] and pair[1].goal else 0.0))
    for case, worst in known:
        assert worst is not None and worst.goal is not None
        effect = "is clear of 0" if worst.goal.low > 0 else "reaches 0"
        goal = interval(worst.goal)
        yield (
            f"{_name(case)}: of {worst.searched:+.2f} searched {goal} is confirmed; "
            f"the interval {effect}."
        )


def all_confirmed(cases: Sequence[WorstCase]) -> Iterator[str]:
    yield from head("method", "settings", "searched", "confirmed", "control", "retained", "bounds")
    for case in cases:
        for one in case.confirmed:
            kept = "kept" if one.is_feasible else "broken"
            yield from line(_name(case), *_cells(case, one), kept)


def tried(cases: Sequence[WorstCase]) -> Iterator[str]:
    yield from wrapped(
        f"*Covered* is the share of the space within {COVERAGE_RADIUS:.0%} of every range, with "
        "every choice equal, of a tried point."
    )
    yield ""
    yield from head("method", "trials", "run to the end", "pruned", "failed", "covered")
    for case in cases:
        counts = [case.count("done"), case.count("pruned"), case.count("failed")]
        cells = [str(sum(counts)), *map(str, counts), f"{case.coverage:.0%}"]
        yield from line(_name(case), *cells)


def costs(points: PointPlanner, cases: Sequence[WorstCase], store: Store) -> Iterator[str]:
    """Against the same asks one by one: each with its own unlearning, and trained to its end."""
    plans = [(t.point, points.plan(points.trials(t.point))) for c in cases for t in counted_of(c)]
    confirming = [points.confirming(one.tried.point) for c in cases for one in c.confirmed]
    alone = sum((one_by_one(plan) for _, plan in plans), Work(0, 0))
    alone += sum((one_by_one(plan) for plan in confirming), Work(0, 0))
    stages = dict.fromkeys(s for plan in (*(p for _, p in plans), *confirming) for s in plan.stages)
    keys = store.keys()
    rungs = {s for c in cases for s in measured_stages(points, c)}
    shared = together({s for s in (*stages, *rungs) if s.key in keys})
    yield from head("", "fine-tuning steps", "unlearning, in steps", "all")
    for name, work in (("trial by trial", alone), ("this search", shared)):
        cells = (work.finetuning, work.unlearning, work.total)
        yield from line(name, *(f"{count:,}" for count in cells))
    ratio = alone.total / shared.total
    yield ""
    yield from wrapped(
        f"{ratio:.1f} times fewer steps than the same asks trial by trial "
        f"({alone.finetuning / shared.finetuning:.1f} times fewer of fine-tuning alone): pruned "
        "trials stop early, all trials of a method and a seed share one unlearned model, and "
        "longer trainings go on from shorter ones. A step of unlearning is counted by its UNet "
        "passes."
    )


def counted_of(case: WorstCase) -> list[Tried]:
    return [trial for trial in counted(case.trials) if trial.state != "failed"]


def measured_stages(points: PointPlanner, case: WorstCase) -> Iterator[Stage]:
    for trial in counted_of(case):
        for steps in trial.curve:
            yield from points.plan(points.trials(trial.point, steps)).stages


def one_by_one(plan: Plan) -> Work:
    """Every trial alone, from the base to its end."""
    stages = [s for trial in plan.trials for s in trial.final.model.lineage]
    return Work(plan.steps_naive(), sum(map(unlearning_steps, stages)))


def together(stages: set[Stage]) -> Work:
    """Each stage once, each trajectory to its longest."""
    longest: dict[str, int] = {}
    for stage in stages:
        if stage.trajectory:
            longest[stage.trajectory] = max(longest.get(stage.trajectory, 0), stage.steps)
    return Work(sum(longest.values()), sum(map(unlearning_steps, stages)))


def unlearning_steps(stage: Stage) -> int:
    if stage.kind != "unlearn":
        return 0
    plugin = find("unlearner", stage.plugin)
    assert issubclass(plugin, UnlearnerPlugin)
    settings = plugin.Settings.model_validate(stage.settings["settings"])
    return round(plugin(settings).passes() / PASSES_A_STEP)


def draw(cases: Sequence[WorstCase], path: Path) -> None:
    """The best value after each trial, and every trial's own, a panel a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(cases) + 0.6, 3.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axis, case in zip(panels, cases, strict=True):
        trials = [t for t in case.trials if t.repeat_of is None]
        _dots(axis, trials)
        best = best_so_far(case.trials, case.goals)
        curve = [(i, value) for i, value in enumerate(best, 1) if value is not None]
        axis.step(*zip(*curve, strict=True), where="post", color=COLOURS[0], label="best so far")
        if (worst := case.worst) is not None and worst.goal is not None:
            at = len(trials) + 2
            goal = worst.goal
            ends = [[goal.value - goal.low], [goal.high - goal.value]]
            axis.errorbar(
                [at], [goal.value], yerr=ends, marker="D", color=COLOURS[1], capsize=3,
                label="confirmed",
            )  # fmt: skip
        axis.axhline(0, color="0.6", linewidth=1)
        axis.set_title(str(next(iter(case.fixed.values()), case.name)), fontsize=10)
        axis.set_xlabel("trial")
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(cases[0].goals[0].name)
    labelled = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in panels]
    handles = {label: handle for pairs in labelled for handle, label in pairs}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles),
        frameon=False, fontsize=8,
    )  # fmt: skip
    figure.savefig(path)


def _dots(axis: Any, trials: Sequence[Tried]) -> None:
    kinds = {
        "run to the end": ("0.35", [t.state == "done" and t.is_feasible for t in trials]),
        "a bound broken": ("0.8", [t.state == "done" and not t.is_feasible for t in trials]),
        "pruned": ("#E69F00", [t.state == "pruned" for t in trials]),
    }
    for label, (colour, chosen) in kinds.items():
        found = [
            (i, last(t)) for i, (t, is_) in enumerate(zip(trials, chosen, strict=True), 1) if is_
        ]
        shown = [(i, value) for i, value in found if value is not None]
        if shown:
            axis.scatter(*zip(*shown, strict=True), s=12, color=colour, label=label)


def last(trial: Tried) -> float | None:
    if trial.values:
        return trial.values[0]
    return trial.curve[max(trial.curve)] if trial.curve else None


if __name__ == "__main__":
    write_page(__doc__ or "", "worst-case.md", page)
