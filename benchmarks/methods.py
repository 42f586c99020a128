"""What each unlearning method does to the bundled model, from the store, as docs/methods.md.

`make methods` runs sweeps/methods.yaml and writes the page; `make tuning` runs every sweep in
sweeps/tuning/ and writes docs/tuning.md. Neither page holds a number that is not in the store.

    python -m benchmarks.methods {methods|tuning} PAGE [--home FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.core.plugin import UnlearnerPlugin
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage
from orchestrator.core.text import number
from orchestrator.home import Home
from orchestrator.results.trials_table import table
from orchestrator.run.job import Job, open_job

ERASED_AT_MOST, RETAINED_AT_LEAST = 0.25, 0.75
METHODS = "sweeps/methods.yaml"
TUNING = "sweeps/tuning"
REFERENCE = ("esd", "group x")

WHY = {
    ("forget_me_not", ""): "The loss has nothing that holds the model together, and the method is "
    "known to collapse and to leave concepts: on Stable Diffusion 1.4 MACE's authors still find "
    "one celebrity of nine and most of several. docs/tuning.md shows the edge: with a little more "
    "training the shape is gone and the others with it; the fill is drawn as ever, however little "
    "attention its words get.",
    ("none", ""): "The control: nothing is unlearned.",
}
"""Why a row does not reach the target: what the measurements show, for the rows that miss it."""


@dataclass(frozen=True)
class Row:
    """One method with one choice of settings: a number by concept and seed for each measure."""

    method: str
    setting: str
    erased: Mapping[str, Sequence[float]]
    retained: Mapping[str, Sequence[float]]
    passes: int
    materials: tuple[str, ...]

    @cached_property
    def reaches(self) -> bool:
        """Whether the means over the seeds reach the target for every concept."""
        return all(mean(values) <= ERASED_AT_MOST for values in self.erased.values()) and all(
            mean(values) >= RETAINED_AT_LEAST for values in self.retained.values()
        )

    @property
    def plugin(self) -> UnlearnerPlugin:
        """With the defaults that ship."""
        cls = find("unlearner", self.method)
        assert issubclass(cls, UnlearnerPlugin)
        return cls(cls.Settings())


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def rows(job: Job) -> list[Row]:
    """In the sweep's order.

    Raises:
        SystemExit: the sweep has not been run to its end.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in table(job.plan, job.store).to_pylist():
        if row["status"] != "done":
            raise SystemExit(f"{job.plan.name} is not complete: resurge run it first")
        if not row["is_control"]:
            groups[row["unlearn.method"], setting_of(row, job.plan.varying)].append(row)
    stages = {stage.digest: stage for stage in (job.plan.root, *job.plan.stages)}
    passes = {
        planned.unlearned.model.digest: edit.plugin.passes()
        for planned in job.plan.trials
        for edit in planned.trial.edits
        if isinstance(edit.plugin, UnlearnerPlugin)
    }
    return [
        Row(
            method,
            setting,
            by_concept(group, "unlearned_score"),
            by_concept(group, "retained_unlearned"),
            passes[group[0]["unlearned_model"]],
            materials(stages[group[0]["unlearned_model"]]),
        )
        for (method, setting), group in groups.items()
    ]


def setting_of(row: Mapping[str, Any], varying: Sequence[str]) -> str:
    """The method's own settings that vary in the sweep, as text."""
    begin = f"unlearn.{row['unlearn.method']}."
    names = [name for name in varying if name.startswith(begin) and row[name] is not None]
    return ", ".join(f"{name.removeprefix(begin)} {number(row[name])}" for name in names)


def by_concept(group: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in group:
        values[row["concept"]].append(row[column])
    return dict(values)


def materials(stage: Stage) -> tuple[str, ...]:
    """What an unlearning works from beside the model, by name."""
    made = (material for need in stage.inputs.values() for material in need.ancestry())
    return tuple(dict.fromkeys(one.plugin for one in made if one.kind == "prepare"))


def cell(values: Sequence[float]) -> str:
    """The mean over seeds, and the range where there is one."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{mean(values):.2f}" + (f" ({low}-{high})" if low != high else "")


def methods_page(home: Home) -> Iterator[str]:
    """docs/methods.md, line by line."""
    job = open_job(METHODS, (), home)
    found = rows(job)
    [reference] = [row for row in found if (row.method, row.setting) == REFERENCE]
    published = {row.method for row in found if row.plugin.changes} - {"gradient_ascent"}
    reaching = {row.method for row in found if row.reaches} & published
    yield "# Unlearning methods on the bundled model"
    yield ""
    yield from wrapped(
        f"Every method with the defaults that ship, {len(job.sweep.seeds)} seeds, from "
        f"`{METHODS}`. *Erased* is the share of pictures in which the judge still sees the erased "
        "concept, *retained* the mean of the same over all other shapes and fills: means over the "
        "seeds, and the range where the seeds differ. *Cost* is the UNet's passes over one latent, "
        "a backward pass counted as two, relative to ESD-x; a closed form has none. *Materials* "
        "are what it works from besides, made once and shared."
    )
    yield ""
    yield from wrapped(
        f"{len(reaching)} of {len(published)} published methods reach erased ≤ {ERASED_AT_MOST} "
        f"and retained ≥ {RETAINED_AT_LEAST} for every concept. This page is written by "
        "`make methods`."
    )
    yield ""
    yield from head("method", *measures(found), "cost", "materials", "reaches")
    for row in found:
        cost = [f"{row.passes / reference.passes:.2f}", ", ".join(row.materials) or "–"]
        yield from line(label(row), *cells(row), *cost, "yes" if row.reaches else "no")
    yield ""
    yield "## Rows that do not reach it"
    yield ""
    for row in found:
        if not row.reaches:
            why = WHY.get((row.method, row.setting), "Not looked into yet.")
            yield from wrapped(f"- {label(row)}: {why}", "  ")
    yield ""
    yield "## Papers"
    yield ""
    for name, plugin in {row.method: row.plugin for row in found}.items():
        if plugin.paper:
            yield from wrapped(f"- `{name}`: {plugin.paper}. {plugin.summary()}", "  ")


def tuning_page(home: Home) -> Iterator[str]:
    """docs/tuning.md, line by line."""
    yield "# How the defaults were chosen"
    yield ""
    yield from wrapped(
        "The defaults of unlearning methods suit the bundled model; published settings for Stable "
        f"Diffusion are presets. Each table is one sweep in `{TUNING}/`: one seed, two pictures a "
        "prompt, erased and retained as in [methods.md](methods.md). The row in bold is what "
        "ships. Written by `make tuning`."
    )
    for path in sorted(Path(TUNING).glob("*.yaml")):
        job = open_job(str(path), (), home)
        yield from ("", f"## {path.stem}", "")
        if not job.done().issuperset(stage.key for stage in job.plan.stages):
            yield f"Not run yet: `resurge run {path}`."
            continue
        found = rows(job)
        yield from head("settings", *measures(found), "reaches")
        defaults = shipped(job)
        for row in found:
            setting = f"**{row.setting}**" if row.setting in defaults else row.setting
            yield from line(setting, *cells(row), "yes" if row.reaches else "no")


def shipped(job: Job) -> set[str]:
    """The settings in the sweep that are the same as the method's defaults, as text."""
    found = set()
    for planned in job.plan.trials:
        for edit in planned.trial.edits:  # a control has none
            if edit.plugin.settings.full() == type(edit.plugin).Settings().full():
                found.add(setting_of(planned.trial.params, job.plan.varying))
    return found


def measures(found: Sequence[Row]) -> list[str]:
    """The columns that `cells` fills."""
    return [f"{concept} {what}" for concept in found[0].erased for what in ("erased", "retained")]


def cells(row: Row) -> list[str]:
    return [cell(values[c]) for c in row.erased for values in (row.erased, row.retained)]


def label(row: Row) -> str:
    return f"`{row.method}`" + (f" ({row.setting})" if row.setting else "")


def line(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def head(*cells: str) -> Iterator[str]:
    yield from line(*cells)
    yield from line(*["---"] * len(cells))


def wrapped(text: str, indent: str = "") -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", choices=["methods", "tuning"])
    parser.add_argument("to", type=Path)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    pages = {"methods": methods_page, "tuning": tuning_page}
    text = "\n".join(pages[given.page](Home.find(given.home)))
    given.to.write_text(f"{text}\n", encoding="utf-8")
    print(given.to)


if __name__ == "__main__":
    main()
