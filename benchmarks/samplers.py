"""What cheaper samplers cost and whether they change the answer, as docs/samplers.md.

`make samplers` runs sweeps/samplers.yaml with each sampler, then writes the page. Every sampler
draws the same models, prompts and initial noise, so that scores are compared picture by picture.

    python -m benchmarks.samplers settings
    python -m benchmarks.samplers FOLDER [--home FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.evidence import back, interval, score, write_page
from benchmarks.joint import within
from benchmarks.methods import head, line, wrapped
from orchestrator.core.artifacts import IMAGES_DRAWN
from orchestrator.home import Home
from orchestrator.plan.plan import Waypoint
from orchestrator.results.groups import ERASED, Group
from orchestrator.results.measure import TrialReader
from orchestrator.results.settings import Aggregate, aggregate
from orchestrator.run.job import Job, open_job
from orchestrator.stats.intervals import Array
from orchestrator.stats.paired import Estimate, change, mean_interval

SWEEP = "sweeps/samplers.yaml"
GROUPS = {ERASED: "Erased", Group("synonym"): "In other words", Group("other"): "Others"}


@dataclass(frozen=True)
class Sampler:
    """A sampler with its number of steps."""

    name: str
    steps: int

    @property
    def title(self) -> str:
        return f"{self.name}, {self.steps} steps"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes the sweep draw with it."""
        how = (f"evaluate.sampler={self.name}", f"evaluate.sampler_steps={self.steps}")
        return (f"name=samplers-{self.name.removesuffix('++')}-{self.steps}", *how)


REFERENCE = Sampler("ddim", 50)
SAMPLERS = (
    REFERENCE,
    Sampler("ddim", 20),
    Sampler("dpmsolver++", 20),
    Sampler("dpmsolver++", 10),
    Sampler("unipc", 20),
    Sampler("unipc", 10),
    Sampler("euler", 20),
)


class Drawn:
    """The sweep as one sampler drew it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reader = TrialReader(job.plan, job.store)

    @cached_property
    def models(self) -> Mapping[str, Waypoint]:
        """Every model, by its digest."""
        points = [p for t in self.job.plan.trials for p in (t.base, t.unlearned, t.final)]
        return {point.model.digest: point for point in points}

    @property
    def seconds_a_picture(self) -> float:
        """Of a worker, while it draws."""
        records = list(self.reader.records(point.sample for point in self.models.values()))
        pictures = sum(record.metrics[IMAGES_DRAWN] for record in records)
        return sum(record.seconds for record in records) / pictures

    def values(self, group: Group) -> Array:
        """Shape (models, prompts, images)."""
        found = [self.reader.group(point, group) for point in self.models.values()]
        return np.stack([one.values for one in found if one is not None])

    @cached_property
    def settings(self) -> list[Aggregate]:
        """Those whose unlearned model was fine-tuned."""
        every = aggregate(self.job.plan, self.job.store).shown
        return [one for one in every if not one.is_control and one.steps]


def page(home: Home, folder: Path) -> Iterator[str]:
    """The page, line by line."""
    yield "# Cheaper samplers"
    yield ""
    yield from wrapped(
        "The same models, prompts and initial noise, drawn by every sampler that "
        "`evaluate.sampler` knows and scored by the bundled judge. What an evaluation costs is its "
        "sampler's steps; what matters is whether fewer of them give another answer. Stable "
        "Diffusion's published figures are drawn with 50 steps of DDIM, to which the others are "
        "compared here. In brackets 95% intervals ([measuring.md](measuring.md)). Written by "
        "`make samplers`."
    )
    jobs = {sampler: open_job(SWEEP, sampler.overrides, home) for sampler in SAMPLERS}
    for sampler, job in jobs.items():
        if not job.done().issuperset(stage.key for stage in job.plan.stages):
            command = " ".join(("resurge run", SWEEP, *sampler.overrides))
            yield from ("", f"Not run yet: `{command}`.")
            return
    drawn = {sampler: Drawn(job) for sampler, job in jobs.items()}
    yield from ("", "## Scores", "")
    yield from scores(drawn)
    yield from ("", "## Resurgence", "")
    yield from resurgence(drawn)
    yield ""
    yield from wrapped(" ".join(sentences(drawn)))


def scores(drawn: Mapping[Sampler, Drawn]) -> Iterator[str]:
    """What each costs and scores, and how far that is from the reference's."""
    reference = drawn[REFERENCE]
    yield from wrapped(
        f"Means over all {len(reference.models)} models, the base, the unlearned and the "
        "fine-tuned ones; under each the difference to the first row, paired picture by picture, "
        "with its interval over models and prompts. *Cost* is the worker's seconds a picture, as a "
        "share of the first row's; they were measured beside whatever else the machine did."
    )
    yield ""
    yield from head("sampler", "passes a picture", "cost", *GROUPS.values())
    for sampler, one in drawn.items():
        cells = [within(mean_interval(one.values(group))) for group in GROUPS]
        if sampler != REFERENCE:
            cells = [
                f"{c}; {interval(d)}" for c, d in zip(cells, apart(drawn, sampler), strict=True)
            ]
        cost = one.seconds_a_picture / reference.seconds_a_picture
        yield from line(sampler.title, str(2 * sampler.steps), f"{cost:.2f}", *cells)


def apart(drawn: Mapping[Sampler, Drawn], sampler: Sampler) -> list[Estimate]:
    """A sampler's scores minus the reference's, by group."""
    mine, reference = drawn[sampler], drawn[REFERENCE]
    assert mine.models.keys() == reference.models.keys()
    return [change(reference.values(group), mine.values(group)) for group in GROUPS]


def resurgence(drawn: Mapping[Sampler, Drawn]) -> Iterator[str]:
    """A row a setting, a column a sampler."""
    yield from head("setting", *(sampler.title for sampler in drawn))
    for row in zip(*(one.settings for one in drawn.values()), strict=True):
        method, steps = row[0].params["unlearn.method"], row[0].steps
        cells = [f"{score(s.unlearned)} → {score(s.final)}: {interval(back(s))}" for s in row]
        yield from line(f"`{method}`, {steps} steps", *cells)


def sentences(drawn: Mapping[Sampler, Drawn]) -> Iterator[str]:
    """Which samplers are told apart from the reference, and by how much at most."""
    reference = drawn[REFERENCE]
    for sampler, one in drawn.items():
        if sampler == REFERENCE:
            continue
        known = dict(zip(GROUPS.values(), apart(drawn, sampler), strict=True))
        differ = [name.lower() for name, e in known.items() if e.low > 0 or e.high < 0]
        largest = max(abs(e.value) for e in known.values())
        inside = sum(
            back(was).low <= back(now).value <= back(was).high
            for was, now in zip(reference.settings, one.settings, strict=True)
        )
        told = f"told apart by {' and '.join(differ)}" if differ else "not told apart by any score"
        yield (
            f"{sampler.title}: {told}, the largest difference {largest:.2f}; {inside} of "
            f"{len(one.settings)} resurgences lie within the interval of {REFERENCE.title}."
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["settings"]:
        print("\n".join(" ".join(sampler.overrides) for sampler in SAMPLERS))
    else:
        write_page(__doc__ or "", "samplers.md", page)
