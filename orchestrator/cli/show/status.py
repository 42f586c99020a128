"""`resurge status`, and how a run ended."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from orchestrator.cli.show.screen import bold
from orchestrator.core.artifacts import Failure
from orchestrator.core.stage import Stage
from orchestrator.plan.labels import stage_label
from orchestrator.run.job import Job
from orchestrator.schedule.failures import ADVICE
from orchestrator.schedule.leases import live_heads
from orchestrator.schedule.scheduler import Outcome


def show_status(job: Job, console: Console) -> None:
    """How much has a record, who runs it, and what failed."""
    done = job.done()
    failures = job.store.failures()
    stages = {stage.key: stage for stage in job.plan.stages}
    trials = sum(all(s.key in done for s in trial.stages()) for trial in job.plan.trials)
    failed = [key for key in failures if key in stages and key not in done]
    console.print(
        bold(
            job.plan.name,
            f": trials {trials}/{len(job.plan.trials)} done · stages {len(done)}/{len(stages)} · "
            f"{len(failed)} failed",
        )
    )
    show_heads(job, console)
    if failed:
        _print_failures(((stages[k], failures[k]) for k in failed), console)


def show_heads(job: Job, console: Console) -> None:
    """Who runs the sweep now, and what is under way; nothing if nobody does."""
    stages = {stage.key: stage for stage in job.plan.stages}
    for head in live_heads(job.store, job.name):
        console.print(f"still run by {head.process}")
        for under_way in head.running:
            if (stage := stages.get(under_way["key"])) is not None:
                total = under_way["total"]
                progress = f" {under_way['done']}/{total}" if total else ""
                console.print(f"  {stage_label(stage)}{progress}", soft_wrap=True)


def show_outcome(job: Job, outcome: Outcome, console: Console) -> None:
    """What ran, failed and was skipped in this run."""
    console.print(
        f"{len(outcome.ran)} stages ran · {len(outcome.failed)} failed · "
        f"{len(outcome.skipped)} skipped"
    )
    if outcome.failed:
        stages = {stage.key: stage for stage in job.plan.stages}
        _print_failures(((stages[k], f) for k, f in outcome.failed.items()), console)
        console.print("The same command runs the failed and skipped stages again.")


def _print_failures(rows: Iterable[tuple[Stage, Failure]], console: Console) -> None:
    """Whole lines, however long: a log's path must be good for copying."""
    for stage, failure in rows:
        text = f"failed ({failure.cause}): {stage_label(stage)}: {failure.message}"
        console.print(text, style="red", soft_wrap=True)
        rest = f"  log: {failure.log_path}\n  what to do: {ADVICE[failure.cause]}"
        console.print(rest, soft_wrap=True)
