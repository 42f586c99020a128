"""What erasing several concepts costs, at once and one after another, as docs/joint.md.

`make joint` runs sweeps/joint.yaml and sweeps/continual.yaml, then writes the page with its
figures. Tables, figures and sentences come from the store; a sweep that has not been run to its end
is said to be missing.

    python -m benchmarks.joint FOLDER [--home FOLDER]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence import interval, score, write_page
from benchmarks.methods import ERASED_AT_MOST, RETAINED_AT_LEAST, head, line, wrapped
from orchestrator.home import Home
from orchestrator.results.chains import Chain, Point, chains
from orchestrator.results.figures import COLOURS
from orchestrator.results.groups import ERASED, Group
from orchestrator.results.settings import Aggregate, aggregate
from orchestrator.run.job import Job, open_job
from orchestrator.stats.paired import Estimate

JOINT, CONTINUAL = "sweeps/joint.yaml", "sweeps/continual.yaml"
SYNONYM, OTHER = Group("synonym"), Group("other")
GROUPS = {ERASED: "Erased", SYNONYM: "In other words", OTHER: "Others"}
ORDERS = ("independent", "continual", "simultaneous")
INTERVALS = "95% intervals over prompts; of the others over concepts"

Sizes = Mapping[int, tuple[Chain, Aggregate]]
"""How many concepts are erased -> the base's and the unlearned model's scores, and the setting."""


def page(home: Home, folder: Path) -> Iterator[str]:
    """The page, line by line; its figures are written beside it."""
    yield "# Several concepts, at once and one after another"
    yield ""
    yield from wrapped(
        "Shapes erased from the bundled model by every method that can erase several, with the "
        "defaults that ship. *Erased* is the share of pictures in which the judge sees the shape "
        "that was asked for, over all erased shapes; *in other words* the same of sentences that "
        "no method trains on; *others* the same of shapes and fills that should survive. In "
        f"brackets {INTERVALS} ([measuring.md](measuring.md)). Written by `make joint`."
    )
    yield from section("One, two and four shapes at once", JOINT, home, folder, joint)
    title = "Three shapes, in three orders"
    yield from section(title, CONTINUAL, home, folder, continual)


def section(title: str, path: str, home: Home, folder: Path, body: Any) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    job = open_job(path, (), home)
    if not job.done().issuperset(stage.key for stage in job.plan.stages):
        yield f"Not run yet: `resurge run {path}`."
        return
    yield from body(job, folder)
    yield ""
    yield from wrapped(f"`{path}`: {aggregate(job.plan, job.store).caption}.")


# One, two and four at once


def joint(job: Job, folder: Path) -> Iterator[str]:
    """A table a group: methods by how many concepts they erase jointly."""
    found = by_size(job)
    sizes = sorted({size for sizes in found.values() for size in sizes})
    draw_joint(found, sizes, folder / "joint.png")
    first = next(iter(found.values()))
    names = (f"{at_once(n)}: {', '.join(first[n][0].points[-1].passage.erased)}" for n in sizes)
    yield from wrapped(
        f"{'; '.join(names)}. The others are what the base retains beside them, fewer the more are "
        "erased; what unlearning took of them is paired picture by picture, and so compares where "
        "their scores do not."
    )
    yield ""
    yield "![Erased shapes, the same in other words, and others, by method and size](joint.png)"
    for group, title in GROUPS.items():
        yield from ("", f"### {title}", "")
        yield from head("", *map(at_once, sizes))
        yield from line("base", *(within(first[n][0].points[0].score(group)) for n in sizes))
        for method, of in found.items():
            cells = (within(of[n][0].points[-1].score(group)) if n in of else "–" for n in sizes)
            yield from line(f"`{method}`", *cells)
    yield from ("", "### What the others lost", "")
    yield from head("", *map(at_once, sizes))
    for method, of in found.items():
        cells = (interval(lost_of(of[n][1])) if n in of else "–" for n in sizes)
        yield from line(f"`{method}`", *cells)
    yield ""
    yield from wrapped(" ".join(joint_sentences(found, sizes)))


def by_size(job: Job) -> dict[str, Sizes]:
    """By method, in the sweep's order."""

    def key(params: Mapping[str, Any]) -> tuple[Any, ...]:
        return params["unlearn.method"], params["concept"]

    settings = {key(s.params): s for s in aggregate(job.plan, job.store).shown}
    found: dict[str, dict[int, tuple[Chain, Aggregate]]] = defaultdict(dict)
    for chain in chains(job.plan, job.store):
        if not chain.is_control:
            size = len(chain.points[-1].passage.erased)
            method = str(chain.params["unlearn.method"])
            found[method][size] = (chain, settings[key(chain.params)])
    return dict(found)


def at_once(size: int) -> str:
    return "1 shape" if size == 1 else f"{size} shapes"


def within(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def lost_of(setting: Aggregate) -> Estimate:
    group = setting.of_role("other")
    assert group is not None  # the sweep's set asks for others
    return group.lost


def joint_sentences(found: Mapping[str, Sizes], sizes: Sequence[int]) -> Iterator[str]:
    """How many methods do it at each size, and which are told apart from one shape."""
    for size in sizes:
        points = [of[size][0].points[-1] for of in found.values() if size in of]
        good = sum(
            value(p) <= ERASED_AT_MOST and value(p, OTHER) >= RETAINED_AT_LEAST for p in points
        )
        yield (
            f"With {at_once(size)}, {good} of {len(points)} methods reach erased ≤ "
            f"{ERASED_AT_MOST} and others ≥ {RETAINED_AT_LEAST}."
        )
    pairs = {
        name: (of[sizes[0]], of[sizes[-1]])
        for name, of in found.items()
        if sizes[0] in of and sizes[-1] in of
    }
    worse, hurt = [], []
    for name, (few, many) in pairs.items():
        low, high = (of[0].points[-1].score() for of in (few, many))
        if low is not None and high is not None and high.low > low.high:
            worse.append(f"`{name}`")
        if lost_of(many[1]).low > lost_of(few[1]).high:
            hurt.append(f"`{name}`")
    yield (
        f"By intervals that do not overlap, these leave more of {at_once(sizes[-1])} than of "
        f"{at_once(sizes[0])}: {', '.join(worse) or 'none'}; and these take more of the others: "
        f"{', '.join(hurt) or 'none'}."
    )


def value(point: Point, group: Group = ERASED) -> float:
    estimate = point.score(group)
    assert estimate is not None  # the sweep is complete
    return estimate.value


def draw_joint(found: Mapping[str, Sizes], sizes: Sequence[int], path: Path) -> None:
    """A panel a group, a row a method, a dot with its interval for each size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(8.6, 1.2 + 0.36 * len(found)), dpi=150, layout="constrained")
    FigureCanvasAgg(sheet)
    panels = sheet.subplots(1, len(GROUPS), sharey=True)
    for axis, (group, title) in zip(panels, GROUPS.items(), strict=True):
        for i, size in enumerate(sizes):
            dodge = 0.22 * (i - (len(sizes) - 1) / 2)
            for row, of in enumerate(found.values()):
                estimate = of[size][0].points[-1].score(group) if size in of else None
                if estimate is not None:
                    _dot(axis, estimate, row + dodge, i, at_once(size) if row == 0 else None)
        _dress(axis, title)
        axis.set_xlim(-0.03, 1.03)
        axis.set_yticks(range(len(found)), list(found))
        for row in range(0, len(found), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
    panels[0].set_ylim(len(found) - 0.5, -0.5)
    sheet.supxlabel(f"share of pictures that show what was asked for; {INTERVALS}", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    sheet.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9
    )
    sheet.savefig(path)


def _dot(axis: Any, estimate: Estimate, at: float, i: int, label: str | None) -> None:
    axis.plot([estimate.low, estimate.high], [at, at], color=COLOURS[i], linewidth=1.2, alpha=0.6)
    axis.plot(estimate.value, at, "osD"[i % 3], color=COLOURS[i], markersize=4.5, label=label)


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=9, loc="left", fontweight="bold")
    axis.tick_params(labelsize=8, length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


# Three orders


@dataclass(frozen=True)
class Course:
    """A method in one order: the way to the erased model, and what each data set made of it.

    `way` has the base first; `tuned` the data set's name, its last point and its setting's numbers.
    """

    method: str
    order: str
    way: tuple[Point, ...]
    aside: tuple[Point, ...]
    tuned: Mapping[str, tuple[Point, Aggregate]]

    @property
    def concepts(self) -> tuple[str, ...]:
        """In the order in which they are erased."""
        return self.way[-1].passage.erased

    def after(self, count: int) -> Point | None:
        """The model in which so many concepts are erased."""
        return next((p for p in self.way if len(p.passage.erased) == count), None)


def courses(job: Job) -> list[Course]:
    """By method and order, in the sweep's order; fine-tuned for the most steps that it has."""
    tuned_ones = sorted(aggregate(job.plan, job.store).shown, key=lambda s: s.steps)
    settings = {course_key(s.params): s for s in tuned_ones if s.is_tuned}
    found: dict[tuple[str, str], dict[str, Chain]] = defaultdict(dict)
    for chain in chains(job.plan, job.store):
        if not chain.is_control:
            method, order, dataset = course_key(chain.params)
            found[method, order][dataset] = chain
    methods = list(dict.fromkeys(method for method, _ in found))
    made = []
    for method, order in sorted(found, key=lambda k: (methods.index(k[0]), ORDERS.index(k[1]))):
        of = found[method, order]
        points = next(iter(of.values())).points
        tuned = {name: (c.points[-1], settings[method, order, name]) for name, c in of.items()}
        last = points[-1].passage.position
        way = tuple(p for p in points if p.passage.position < last and not p.passage.aside)
        made.append(Course(method, order, way, tuple(p for p in points if p.passage.aside), tuned))
    return made


def course_key(params: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        str(params["unlearn.method"]), str(params["unlearn.order"]), str(params["finetune.dataset"])
    )  # fmt: skip


def continual(job: Job, folder: Path) -> Iterator[str]:
    """A figure, and a table each of the erasures and of what fine-tuning brings back."""
    found = courses(job)
    concepts = found[0].concepts
    counts = range(1, len(concepts) + 1)
    draw_continual(found, folder / "continual.png")
    yield from wrapped(
        f"{', '.join(concepts)} are erased *independently* (each from the base, and the changes "
        "added), *continually* (each from the model that the last one left) or *simultaneously* "
        "(jointly); then each model is fine-tuned on pictures that show none of them."
    )
    yield ""
    yield "![Each shape's score at every point of the way, by method and order](continual.png)"
    yield from ("", "### At every point", "")
    yield from wrapped(
        f"Scores of {' / '.join(concepts)} when so many of them are erased, in this order; of "
        "independent erasure also each in the model in which it alone was erased."
    )
    yield ""
    names = (f"{count} erased" for count in counts)
    yield from head("method", "order", "alone", *names, "all", "in other words", "others")
    for course in found:
        each = [scores_of(course.after(count), concepts) for count in counts]
        last = course.way[-1]
        ends = (within(last.score(group)) for group in GROUPS)
        yield from line(f"`{course.method}`", course.order, alone(course), *each, *ends)
    yield from ("", "### After fine-tuning", "")
    yield from wrapped(
        "Resurgence, the score after fine-tuning minus the score before: of each shape, of all "
        "together, and of the one that came back the most (the largest of several, and so too "
        "large by chance). *Control* is the score of all after the same fine-tuning of the base."
    )
    yield ""
    names = (*concepts, "all", "the worst", "control", "others", "")
    yield from head("method", "order", "data set", *names)
    for course in found:
        for dataset, (point, setting) in course.tuned.items():
            cells = back_cells(setting, concepts)
            rest = (score(setting.control), within(point.score(OTHER)), flaws(setting))
            yield from line(f"`{course.method}`", course.order, dataset, *cells, *rest)
    yield ""
    yield from wrapped(" ".join(order_sentences(found)))


def scores_of(point: Point | None, concepts: Sequence[str]) -> str:
    """'0.02 / 0.90 / 1.00': each concept's score at a point; nothing where there is no such."""
    if point is None:
        return ""
    return " / ".join(f"{value(point, Group('erased', concept)):.2f}" for concept in concepts)


def alone(course: Course) -> str:
    """Each concept's score in the model in which it alone was erased, where there are such."""
    if not course.aside:
        return ""
    models = (*course.way[1:2], *course.aside)
    by_concept = {p.passage.erased[0]: p for p in models if len(p.passage.erased) == 1}
    scores = (value(by_concept[c], Group("erased", c)) for c in course.concepts)
    return " / ".join(f"{one:.2f}" for one in scores)


def back_cells(setting: Aggregate, concepts: Sequence[str]) -> Iterator[str]:
    each = {one.group.concept: one.paired.resurgence for one in setting.groups}
    for concept in concepts:
        yield f"{each[concept].value:+.2f}"
    worst, paired = setting.worst, setting.paired
    assert worst is not None and paired is not None  # the sweep is complete
    yield interval(paired.resurgence)
    yield f"{worst.group.concept} {interval(worst.paired.resurgence)}"


def flaws(setting: Aggregate) -> str:
    """What makes its resurgence mean nothing."""
    failed = ["unlearning failed"] if setting.unlearning_failed else []
    return ", ".join([*failed, *(["model ruined"] if setting.model_ruined else [])])


def order_sentences(found: Sequence[Course]) -> Iterator[str]:
    """What later erasures do to the first concept, and after which order the most comes back."""
    for course in found:
        first, last = course.after(1), course.way[-1]
        if course.order == "continual" and first is not None:
            name = course.concepts[0]
            one = Group("erased", name)
            yield (
                f"With `{course.method}` {name} is at {value(first, one):.2f} after its own "
                f"erasure and at {value(last, one):.2f} after the others'."
            )
    by_method: dict[str, list[tuple[float, Course, str]]] = defaultdict(list)
    for course in found:
        for dataset, (_, setting) in course.tuned.items():
            if setting.worst is not None and setting.is_sound:
                back = setting.worst.paired.resurgence.value
                by_method[course.method].append((back, course, dataset))
    for method, backs in by_method.items():
        most = max(backs, key=lambda one: one[0])
        yield (
            f"The most that one shape comes back with `{method}` is {most[0]:+.2f}, after "
            f"{most[1].order} erasure and fine-tuning on {most[2]}."
        )


def draw_continual(found: Sequence[Course], path: Path) -> None:
    """A column a method, a row an order: each concept's score from the base to the fine-tunes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(course.method for course in found))
    orders = [order for order in ORDERS if any(c.order == order for c in found)]
    size = (1.0 + 2.2 * len(methods), 0.9 + 1.6 * len(orders))
    sheet = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(sheet)
    panels = sheet.subplots(len(orders), len(methods), sharex=True, sharey=True, squeeze=False)
    for course in found:
        axis = panels[orders.index(course.order)][methods.index(course.method)]
        _draw_course(axis, course)
        is_first = course.order == orders[0]
        _dress(axis, course.method if is_first else "")
        if course.method == methods[0]:
            axis.set_ylabel(course.order, fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    sheet.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8
    )
    sheet.supxlabel("concepts erased so far, then fine-tuned on", fontsize=8)
    sheet.savefig(path)


def _draw_course(axis: Any, course: Course) -> None:
    lines = {
        concept: (Group("erased", concept), COLOURS[i], "-", "osD^v"[i % 5])
        for i, concept in enumerate(course.concepts)
    }
    lines |= {"in other words": (SYNONYM, "0.35", ":", "x"), "others": (OTHER, "0.55", "--", ".")}
    last = len(course.concepts)
    for i, (label, (group, colour, dash, marker)) in enumerate(lines.items()):
        dodge = 0.07 * (i - (len(lines) - 1) / 2)
        at = [len(p.passage.erased) + dodge for p in course.way]
        style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
        axis.plot(at, [value(p, group) for p in course.way], label=label, linewidth=1.4, **style)
        for n, (point, _) in enumerate(course.tuned.values(), 1):
            estimate = point.score(group)
            assert estimate is not None  # the sweep is complete
            where = _place_of(last, n) + dodge
            axis.vlines(where, estimate.low, estimate.high, color=colour, alpha=0.5, linewidth=1.2)
            axis.plot(where, estimate.value, **style | {"linestyle": "none"})
    places = [_place_of(last, n) for n, _ in enumerate(course.tuned, 1)]
    axis.axvspan(places[0] - 0.7, places[-1] + 0.7, color="0.95", zorder=0)
    ticks = ["base", *map(str, range(1, last + 1)), *course.tuned]
    axis.set_xticks([*range(last + 1), *places], ticks)
    axis.set_ylim(-0.05, 1.08)


def _place_of(last: int, n: int) -> float:
    """Where the n-th fine-tune stands: apart, so that the names of data sets fit."""
    return last - 0.2 + 1.4 * n


if __name__ == "__main__":
    write_page(__doc__ or "", "joint.md", page)
