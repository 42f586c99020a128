"""`resurge plan`: how many stages, their tree, and what they would take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from itertools import islice

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from orchestrator.cli.show.screen import bold
from orchestrator.cli.show.tables import new_table
from orchestrator.core.stage import Stage, StageKind
from orchestrator.core.text import duration, size_text
from orchestrator.plan.labels import stage_label
from orchestrator.plan.plan import Plan
from orchestrator.run.forecast import Forecast
from orchestrator.run.job import Job
from orchestrator.stats.power import PROMPT_ICC, SEED_ICC, Size, minimum_detectable

STAGES: tuple[StageKind, ...] = ("prepare", "unlearn", "finetune", "merge", "sample", "score")
BRANCHES_SHOWN = 8


def show_plan(job: Job, console: Console, full: bool) -> None:
    """The counts by kind, what sharing saves, and the tree; of a search first its space."""
    if job.sweep.search is not None:
        from orchestrator.cli.show.worst_cases import show_space

        show_space(job.sweep, job.sweep.search, console)
        if not job.plan.trials:
            return
        console.print("Asked for so far:")
    show_plan_line(job, console)
    done = job.done()
    show_counts(job, done, console)
    show_numbers(job, console)
    console.print(_tree(job, done, None if full else BRANCHES_SHOWN))


def show_counts(job: Job, done: Collection[str] | None, console: Console) -> None:
    """Stages by kind and the steps that sharing saves; `done` is None where that is not known."""
    unique, naive = job.plan.count(), job.plan.count_naive()
    cached = Counter(stage.kind for stage in job.plan.stages if stage.key in (done or ()))
    table = new_table("stage", right=["naive", "unique", "cached", "to run"])

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


def show_numbers(job: Job, console: Console) -> None:
    """Which number the sweep will give, by which judge, and how small an effect it can tell: of the
    first set of concepts that it erases, role by role.
    """
    evaluate, first = job.sweep.evaluate, job.plan.trials[0]
    if not evaluate.draws:
        names = ", ".join(metric.name for metric in evaluate.metrics)
        console.print(f"no pictures are drawn: no resurgence, but what {names} say of the models")
        return
    primary = next((m for m in evaluate.metrics if m.gives_resurgence), None)
    if primary is not None:
        by = f" ({judge})" if (judge := primary.judged_by()) else ""
        console.print(f"resurgence by {primary.name} v{primary.version}{by}", soft_wrap=True)
    console.print(sentence(size_of(job.plan)), soft_wrap=True)
    probes = evaluate.probes(job.sweep.base, first.trial.erased)
    asked = evaluate.asked_of(probes)
    table = new_table("role", "scored by", right=["concepts", "prompts", "pictures", "detectable"])
    for role, pictures in asked.pictures.items():
        concepts = {probe.concept for probe in probes if probe.role == role}
        judges = [m.name for m in evaluate.metrics if role in m.roles(asked)]
        size = size_of(job.plan, role)
        least = minimum_detectable(size)
        found = f"{least:.2f}" if least <= 1 else "–"
        table.add_row(
            role,
            ", ".join(judges) or "nothing",
            *(str(n) for n in (len(concepts), size.prompts, pictures)),
            found,
        )
    console.print(table)


def size_of(plan: Plan, role: str = "erased") -> Size:
    """What a role is measured by in each setting of a plan; rows that differ in nothing but their
    noise are one prompt.
    """
    settings = plan.trials[0].final.sample.settings
    asked = [(p["concept"], p["prompt"]) for p in settings["probes"] if p["role"] == role]
    seeds = {planned.trial.seed for planned in plan.trials}
    images = len(asked) * settings["settings"]["images_per_prompt"] // len(set(asked))
    return Size(len(set(asked)), images, len(seeds))


def sentence(size: Size) -> str:
    """One line for `resurge plan`."""
    least = minimum_detectable(size)
    found = f"{least:.2f}" if least <= 1 else "none, not even 1.00"
    alone = "" if size.seeds > 1 else "; one seed: of this seed only"
    return (
        f"minimum detectable resurgence of a setting: {found} ({size}, paired; 80% power, 5% "
        f"two-sided, final score 0.5, intra-cluster correlation {PROMPT_ICC:g} by prompt and "
        f"{SEED_ICC:g} by seed{alone})"
    )


def show_forecast(found: Forecast, workers: int, price: float | None, console: Console) -> None:
    """Hours, makespan and cost of four ways to run it; `price` is that of a worker's hour."""
    is_gpu = found.device != "cpu"
    own = "GPU hours" if is_gpu else "worker hours"
    columns = [own, "until done", *(["cost"] if price is not None else [])]
    table = new_table("", right=columns)
    ways = {
        "every trial alone": found.naive,
        "unlearned models kept by hand": found.by_hand,
        "shared": found.shared,
        "to run now": found.left,
    }
    for title, way in ways.items():
        hours = way.worker_s / 3600
        cost = [f"{hours * price:,.2f}"] if price is not None else []
        style = "bold" if way is found.left else ""
        table.add_row(title, f"{hours:,.2f}", duration(way.makespan_s), *cost, style=style)
    kind = found.device if is_gpu else "CPU"
    console.print(f"On {workers} workers ({kind}), by what stages of this base took:")
    console.print(table)
    saved = found.naive.worker_s / found.shared.worker_s if found.shared.worker_s else 1.0
    console.print(
        f"sharing: {saved:.1f} times fewer hours; the longest chain of stages takes "
        f"{duration(found.path_s)}, whatever the number of workers; about "
        f"{size_text(found.stored_bytes)} will be stored"
    )
    if found.guessed:
        console.print(
            f"never run on this base, so guessed by UNet passes: {', '.join(found.guessed)}",
            style="yellow",
        )


def show_plan_line(job: Job, console: Console) -> None:
    """One line: the sweep, its trials, its stages."""
    plan = job.plan
    controls = sum(trial.is_control for trial in plan.trials)
    counts = f": {len(plan.trials) - controls} trials and {controls} controls on base "
    stages = f"{plan.root.plugin}, {len(plan.stages)} unique stages"
    console.print(bold(plan.name, counts + stages))


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
            label = stage_label(group[0], with_steps=False)
            if group[0].kind == "finetune":
                steps = sorted(stage.steps for stage in group)
                label += f" · {', '.join(map(str, steps))} steps"
            is_done = all(stage.key in done for stage in group)
            twig = branch.add(Text.assemble(label, (" (cached)" if is_done else "", "dim")))
            for stage in group:
                grow(twig, stage.digest)
        if limit is not None and len(groups) > limit:
            branch.add(f"… and {len(groups) - limit} more (--full shows them)")

    grow(tree, job.plan.root.digest)
    return tree
