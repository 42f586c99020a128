"""What the command line prints of a sweep: its plan, its state, its outcome, its results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from orchestrator.describe import stage_label
from orchestrator.errors import ResurgeError
from orchestrator.failures import ADVICE
from orchestrator.heads import live_heads
from orchestrator.plugin import Kind, MetricPlugin, UnlearnerPlugin, registry, suggest
from orchestrator.run import Job
from orchestrator.scheduler import Outcome
from orchestrator.stage import Stage, StageKind
from orchestrator.work import Cause

KINDS: Mapping[str, Kind] = {
    "bases": "base",
    "unlearners": "unlearner",
    "datasets": "dataset",
    "metrics": "metric",
    "executors": "executor",
}
STAGES: tuple[StageKind, ...] = ("prepare", "unlearn", "finetune", "merge", "sample", "score")
BRANCHES_SHOWN = 8


def show_plan(job: Job, console: Console, full: bool) -> None:
    """The counts by kind, what sharing saves, and the tree; of a search first its space."""
    if job.sweep.search is not None:
        from orchestrator.search_table import show_space

        show_space(job.sweep, job.sweep.search, console)
        if not job.plan.trials:
            return
        console.print("Asked for so far:")
    show_plan_line(job, console)
    done = job.done()
    show_counts(job, done, console)
    _show_power(job, console)
    console.print(_tree(job, done, None if full else BRANCHES_SHOWN))


def show_counts(job: Job, done: Collection[str] | None, console: Console) -> None:
    """Stages by kind and the steps that sharing saves; `done` is None where that is not known."""
    unique, naive = job.plan.count(), job.plan.count_naive()
    cached = Counter(stage.kind for stage in job.plan.stages if stage.key in (done or ()))
    table = Table("stage", *("naive", "unique", "cached", "to run"), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(title: str, naive: int, unique: int, cached: int, style: str = "") -> None:
        rest = ("?", "?") if done is None else (str(cached), str(unique - cached))
        table.add_row(title, str(naive), str(unique), *rest, style=style)

    for kind in (kind for kind in STAGES if naive[kind] or kind != "merge"):
        row(kind, naive[kind], unique[kind], cached[kind])
    row("all", naive.total(), unique.total(), cached.total(), style="bold")
    console.print(table)
    steps, steps_naive = job.plan.steps(), job.plan.steps_naive()
    if steps:
        saved = f"{steps_naive / steps:.1f} times fewer than trial by trial"
        console.print(f"fine-tuning steps: {steps:,} instead of {steps_naive:,} ({saved})")


def _show_power(job: Job, console: Console) -> None:
    from orchestrator.power import sentence, size_of

    console.print(sentence(size_of(job.plan)), soft_wrap=True)


def show_plan_line(job: Job, console: Console) -> None:
    """One line: the sweep, its trials, its stages."""
    plan = job.plan
    controls = sum(trial.is_control for trial in plan.trials)
    console.print(
        f"[bold]{plan.name}[/bold]: {len(plan.trials) - controls} trials and {controls} controls "
        f"on base {plan.root.plugin}, {len(plan.stages)} unique stages"
    )


def _tree(job: Job, done: set[str], limit: int | None) -> Tree:
    """Models only; a trajectory is one line, and branches beyond the limit are counted."""
    children: dict[str, dict[str, list[Stage]]] = defaultdict(lambda: defaultdict(list))
    for stage in job.plan.stages:
        if stage.is_model and stage.parent is not None:
            children[stage.parent.digest][stage.trajectory or stage.digest].append(stage)
    tree = Tree(f"base {job.plan.root.plugin}")

    def grow(branch: Tree, digest: str) -> None:
        groups = list(children[digest].values())
        groups.sort(key=lambda group: (group[0].kind != "unlearn", stage_label(group[0])))
        for group in islice(groups, limit):
            twig = branch.add(_group_label(group, done))
            for stage in group:
                grow(twig, stage.digest)
        if limit is not None and len(groups) > limit:
            branch.add(f"… and {len(groups) - limit} more (--full shows them)")

    grow(tree, job.plan.root.digest)
    return tree


def _group_label(group: list[Stage], done: set[str]) -> str:
    label = stage_label(group[0], with_steps=False)
    if group[0].kind == "finetune":
        label += " · " + ", ".join(str(s.steps) for s in sorted(group, key=lambda s: s.steps))
        label += " steps"
    cached = sum(stage.key in done for stage in group)
    return label + (" [dim](cached)[/dim]" if cached == len(group) else "")


def show_status(job: Job, console: Console) -> None:
    """How much has a record, who runs it, and what failed."""
    done = job.done()
    failures = job.store.failures()
    stages = {stage.key: stage for stage in job.plan.stages}
    trials = sum(all(s.key in done for s in trial.stages()) for trial in job.plan.trials)
    failed = [key for key in failures if key in stages and key not in done]
    console.print(
        f"[bold]{job.plan.name}[/bold]: trials {trials}/{len(job.plan.trials)} done · "
        f"stages {len(done)}/{len(stages)} · {len(failed)} failed"
    )
    show_heads(job, console)
    if failed:
        _print_failures(((stages[k], failures[k]) for k in failed), console)


def show_heads(job: Job, console: Console) -> None:
    """Who runs the sweep now, and what is under way; nothing if nobody does."""
    stages = {stage.key: stage for stage in job.plan.stages}
    for head in live_heads(job.store, job.sweep.name):
        console.print(f"still run by {head.process}", markup=False)
        for under_way in head.running:
            if (stage := stages.get(under_way["key"])) is not None:
                total = under_way["total"]
                progress = f" {under_way['done']}/{total}" if total else ""
                console.print(f"  {stage_label(stage)}{progress}", markup=False, soft_wrap=True)


def show_outcome(job: Job, outcome: Outcome, console: Console) -> None:
    """What ran, failed and was skipped in this run."""
    console.print(
        f"{len(outcome.ran)} stages ran · {len(outcome.failed)} failed · "
        f"{len(outcome.skipped)} skipped"
    )
    if outcome.failed:
        stages = {stage.key: stage for stage in job.plan.stages}
        rows = ((stages[key], vars(event)) for key, event in outcome.failed.items())
        _print_failures(rows, console)
        console.print("The same command runs the failed and skipped stages again.")


def _print_failures(rows: Iterable[tuple[Stage, Mapping[str, Any]]], console: Console) -> None:
    """Whole lines, however long: a log's path must be good for copying."""
    for stage, failure in rows:
        cause: Cause = failure.get("cause", "bug")
        text = f"failed ({cause}): {stage_label(stage)}: {failure['message']}"
        console.print(text, style="red", markup=False, soft_wrap=True)
        rest = f"  log: {failure['log_path']}\n  what to do: {ADVICE[cause]}"
        console.print(rest, markup=False, soft_wrap=True)


def show_results(job: Job, console: Console, by: Sequence[str] = ()) -> None:
    """The table of settings with resurgence, recovery, control and interval.

    With `by`, averaged over all other axes. Of a search, without it, the worst cases.
    """
    if not by and job.sweep.search is not None:
        from orchestrator.search import found_by
        from orchestrator.search_table import show_worst_cases

        show_worst_cases(found_by(job.sweep, job.home), console)
        return
    from orchestrator.summary import aggregate, aggregate_by
    from orchestrator.summary_table import render

    summary = aggregate_by(job.plan, job.store, by) if by else aggregate(job.plan, job.store)
    render(summary, console)


def show_times(job: Job, console: Console, threshold: float | None) -> None:
    """The table of times to resurgence."""
    from orchestrator.survival import times_to_resurgence
    from orchestrator.survival_table import render

    render(times_to_resurgence(job.plan, job.store, threshold), console)


def show_plugins(kind: str | None, console: Console) -> None:
    """Plug-ins by kind, with the first line of what they say of themselves."""
    if kind is not None and kind not in KINDS:
        raise ResurgeError(f"unknown kind {kind!r}{suggest(kind, [*KINDS, 'sweeps'])}")
    if kind is not None and kind in _IN_FULL:
        _IN_FULL[kind](console)
        return
    for title in KINDS if kind is None else [kind]:
        table = Table(title, "", box=None, pad_edge=False, header_style="bold")
        for name, plugin in registry(KINDS[title]).items():
            table.add_row(f"  {name}", plugin.summary())
        console.print(table)


def _show_metrics(console: Console) -> None:
    """Each metric with what it scores, the range of its values, and what more of it means."""
    table = Table("metric", "", "scores", "range", "higher is", box=None, pad_edge=False)
    for name, plugin in registry("metric").items():
        if issubclass(plugin, MetricPlugin):
            low, high = ("" if end is None else f"{end:g}" for end in plugin.values)
            beside = " beside the base's" if plugin.reference else ""
            scored = f"{'models' if plugin.needs == 'pipeline' else plugin.needs}{beside}"
            span = f"{low or '-∞'} to {high or '∞'}"
            table.add_row(name, plugin.summary(), scored, span, plugin.higher)
    console.print(table)


def _show_unlearners(console: Console) -> None:
    """Each method with its paper, its presets, and what it costs as it ships."""
    table = Table("unlearner", "", "paper", "presets", "UNet passes", box=None, pad_edge=False)
    table.columns[-1].justify = "right"
    for name, plugin in registry("unlearner").items():
        if issubclass(plugin, UnlearnerPlugin):
            passes = plugin(plugin.Settings()).passes()
            presets = ", ".join(getattr(plugin.Settings, "PRESETS", ()))
            cost = f"{passes:,}" if passes else "closed form" if plugin.changes else "none"
            table.add_row(name, plugin.summary(), plugin.paper, presets, cost)
    console.print(table)
    console.print(
        "UNet passes: over one latent, a backward pass counted as two, with the defaults that ship "
        "(for the bundled shapes model); the materials a method works from are shared and not "
        "counted. A preset: `unlearn: [{esd: {preset: sd-object}}]`."
    )


_IN_FULL: Mapping[str, Callable[[Console], None]] = {
    "metrics": _show_metrics,
    "unlearners": _show_unlearners,
}
"""Kinds that have more to say of themselves than a line."""
