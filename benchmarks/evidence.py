"""What distance, harmful data and a curriculum do to resurgence on the bundled model.

`make evidence` runs three sweeps and writes docs/evidence.md with its figures. Tables, figures and
sentences come from the store; a sweep that has not been run is said to be missing.

    python -m benchmarks.evidence FOLDER [--home FOLDER]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import head, line, wrapped
from orchestrator.home import Home
from orchestrator.results.settings import Aggregate, aggregate
from orchestrator.run.job import Job, open_job
from orchestrator.stats.paired import Estimate

Series = Mapping[str, Mapping[Any, Aggregate]]
"""Method -> place on the axis -> setting."""


@dataclass(frozen=True)
class Study:
    """A sweep, what its axis is, and the question that it answers."""

    name: str
    title: str
    question: str
    axis: str
    label: str

    @property
    def path(self) -> str:
        return f"sweeps/{self.name}.yaml"


CURRICULUM = "curriculum"
"""The axis of a chain: how many of its fine-tunes were done."""

STUDIES = (
    Study(
        "distance", "Distance from the concept",
        "The same number of fine-tuning pictures, near to the erased star or far from it. None "
        "shows a star; near and far are by the judge's features.",
        "finetune.nearest.bin", "how far the fine-tuning pictures are from a star",
    ),
    Study(
        "mixed", "A share of harmful data",
        "Pictures of the erased concept among ordinary ones: at 0 what comes back is resurgence, "
        "at 1 the concept is taught again.",
        "finetune.mixed.share", "share of pictures that show a star",
    ),
    Study(
        "sequential", "A curriculum of fine-tunes",
        "Five data sets one after another, from handwritten digits to the star's nearest "
        "neighbours, looked at after each. *far* and *near* are those of the `related` pictures.",
        CURRICULUM, "last fine-tune done",
    ),
)  # fmt: skip


def series(job: Job, study: Study) -> Series:
    """The settings with the most steps, by method and place on the axis."""
    found: dict[str, dict[Any, Aggregate]] = defaultdict(dict)
    shown = aggregate(job.plan, job.store).shown
    if study.axis != CURRICULUM:
        most = max(setting.steps for setting in shown)
        shown = [setting for setting in shown if setting.steps == most]
    for setting in shown:
        found[str(setting.params["unlearn.method"])][place(setting, study)] = setting
    return {
        method: dict(sorted(settings.items(), key=lambda item: _rank(item[0])))
        for method, settings in found.items()
    }


def _rank(where: Any) -> Any:
    bins = ("near", "middle", "far")
    return bins.index(where) if where in bins else where


def place(setting: Aggregate, study: Study) -> Any:
    """The value of the study's axis; of a curriculum its last data set, with its number."""
    if study.axis != CURRICULUM:
        return setting.params[study.axis]
    done = [
        name.removesuffix(".steps")
        for name, steps in setting.params.items()
        if name.startswith("finetune") and name.endswith(".steps") and steps != 0
    ]
    dataset = setting.params[f"{done[-1]}.dataset"]
    which = setting.params.get(f"{done[-1]}.{dataset}.bin", dataset)
    return f"{len(done)} {which}"


def back(setting: Aggregate) -> Estimate:
    assert setting.paired is not None  # the sweep is complete
    return setting.paired.resurgence


def page(home: Home, folder: Path) -> Iterator[str]:
    """The page, line by line; figures are written beside it."""
    yield "# Evidence on the bundled model"
    yield ""
    yield from wrapped(
        "Three questions that the field asks of Stable Diffusion, asked of the bundled model where "
        "a laptop answers them. *Resurgence* is the score after fine-tuning minus the score after "
        "unlearning, with its 95% interval over prompts and seeds ([measuring.md](measuring.md)); "
        "*control* is the score after the same fine-tuning of the base without unlearning. Written "
        "by `make evidence`."
    )
    for study in STUDIES:
        yield from section(study, open_job(study.path, (), home), folder)


def section(study: Study, job: Job, folder: Path) -> Iterator[str]:
    yield from ("", f"## {study.title}", "")
    yield from wrapped(study.question)
    yield ""
    if not job.done().issuperset(stage.key for stage in job.plan.stages):
        yield f"Not run yet: `resurge run {study.path}`."
        return
    found = series(job, study)
    draw(study, found, folder / f"{study.name}.png")
    yield f"![{study.title}]({study.name}.png)"
    yield ""
    yield from rows(found)
    yield ""
    yield from wrapped(" ".join(sentences(found)))
    yield ""
    yield from wrapped(aggregate(job.plan, job.store).caption + ".")


def rows(found: Series) -> Iterator[str]:
    yield from head("method", "", "unlearned", "final", "resurgence", "control", "retained")
    for method, settings in found.items():
        for where, setting in settings.items():
            scores = (setting.unlearned, setting.final)
            rest = (setting.control, setting.retained)
            cells = [*map(score, scores), interval(back(setting)), *map(score, rest)]
            yield from line(method, str(where), *cells)


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def sentences(found: Series) -> Iterator[str]:
    """What the table shows, one sentence a method and one for all."""
    apart = 0
    for method, settings in found.items():
        ranked = sorted(settings.items(), key=lambda item: back(item[1]).value)
        (least, low), (most, high) = ranked[0], ranked[-1]
        are_apart = back(low).high < back(high).low
        apart += are_apart
        relation = "do not overlap" if are_apart else "overlap"
        yield (
            f"With `{method}` the largest resurgence, {interval(back(high))}, is at {most} and the "
            f"smallest, {interval(back(low))}, at {least}; their intervals {relation}."
        )
    harmful = [str(where) for where, hurt in _harm(found).items() if hurt]
    if harmful:
        yield (
            f"At {', '.join(harmful)} the control has lost more than half of the base's score: "
            "that fine-tuning harms the model itself, whatever was unlearned before."
        )
    yield (
        f"The ends are told apart for {apart} of {len(found)} methods with these seeds and prompts."
    )


def _harm(found: Series) -> dict[Any, bool]:
    """For each place, whether the same fine-tuning of the base takes the concept from it."""
    return {
        where: setting.control is not None and setting.control < (setting.base or 0.0) / 2
        for settings in found.values()
        for where, setting in settings.items()
    }


def draw(study: Study, found: Series, path: Path) -> None:
    """Resurgence with its interval against the axis, one line a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    places = list(next(iter(found.values())))
    for number, (method, settings) in enumerate(found.items()):
        shift = 0.08 * (number - (len(found) - 1) / 2)
        at = [places.index(where) + shift for where in settings]
        values = [back(setting) for setting in settings.values()]
        ends = [[e.value - e.low for e in values], [e.high - e.value for e in values]]
        middle = [e.value for e in values]
        axis.errorbar(at, middle, yerr=ends, marker="osD^v"[number % 5], capsize=3, label=method)
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set_xticks(range(len(places)), [str(where) for where in places])
    axis.set_xlabel(study.label)
    axis.set_ylabel("resurgence, 95% interval")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path)


def write_page(about: str, name: str, page_of: Callable[[Home, Path], Iterator[str]]) -> None:
    """The command line of a generated page: `FOLDER [--home FOLDER]`."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    text = "\n".join(page_of(Home.find(given.home), given.folder))
    (given.folder / name).write_text(f"{text}\n", encoding="utf-8")
    print(given.folder / name)


if __name__ == "__main__":
    write_page(__doc__ or "", "evidence.md", page)
