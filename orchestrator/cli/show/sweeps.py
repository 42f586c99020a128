"""The sweeps that a store knows: each one's state, how far it is, when it changed last."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from orchestrator.cli.show.tables import new_table
from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.run.job import open_results
from orchestrator.schedule.leases import live_heads
from orchestrator.store.paths import FAILURES, RECORDS, SWEEPS, json_path, name_in
from orchestrator.store.store import Store

SweepState = Literal["running", "finished", "failed", "stopped", "unknown"]


@dataclass(frozen=True)
class Listed:
    """A line of the list. Counts are of trials; `why` says why they are not known."""

    name: str
    state: SweepState
    done: int | None = None
    total: int | None = None
    failed: int | None = None
    changed_s: float | None = None
    why: str = ""


def show_sweeps(home: Home, console: Console) -> None:
    """The table of all sweeps of the home's store."""
    found = list_sweeps(home)
    if not found:
        console.print(f"No sweep has been run on {home.store_location()} yet.")
        return
    table = new_table("sweep", "state", right=["trials", "failed"])
    table.add_column("last change")
    for one in found:
        trials = f"{one.done}/{one.total}" if one.total is not None else "?"
        failed = "?" if one.failed is None else str(one.failed)
        when = ""
        if one.changed_s is not None:
            when = f"{datetime.datetime.fromtimestamp(one.changed_s):%Y-%m-%d %H:%M}"
        table.add_row(one.name, one.state, trials, failed, when)
    console.print(table)
    for one in found:
        if one.why:
            console.print(f"{one.name}: {one.why}", soft_wrap=True, style="dim")


def list_sweeps(home: Home) -> list[Listed]:
    """Every sweep of the store; one that cannot be planned here has its counts left out."""
    store = Store(home.store_location())
    running = {head.sweep for head in live_heads(store)}
    changed = {
        name_in(entry.path): entry.changed_s
        for folder in (RECORDS, FAILURES)
        for entry in store.files.walk(folder)
    }
    failures = set(store.failures())
    found = []
    for name in store.sweeps():
        begun = store.files.info(json_path(SWEEPS, name))
        begun_s = begun.changed_s if begun else None
        state: SweepState
        try:
            job = open_results(name, home, store)
            _ = job.plan, job.store  # what cannot be planned here shows now
        except ResurgeError as error:
            state = "running" if name in running else "unknown"
            why = " ".join(str(error).split())
            found.append(Listed(name, state, changed_s=begun_s, why=why))
            continue
        keys = {stage.key for stage in job.plan.stages}
        done = job.store.keys() & keys
        is_over = done == keys
        if job.is_search:
            from orchestrator.study.studies import is_complete

            is_over = is_over and is_complete(job.points, job.studies, job.store)
        failed = len((failures & keys) - done)
        ended: SweepState = "finished" if is_over else "failed" if failed else "stopped"
        state = "running" if name in running else ended
        trials = sum(all(s.key in done for s in trial.stages()) for trial in job.plan.trials)
        times = [changed[key] for key in keys & changed.keys()]
        last_s = max([*times, *([begun_s] if begun_s is not None else [])], default=None)
        found.append(Listed(name, state, trials, len(job.plan.trials), failed, last_s))
    return found
