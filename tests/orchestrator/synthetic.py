"""A small sweep with made-up records: 2 methods × 2 data sets × 2 rates × 3 step counts × 2 seeds.

The values are random but seeded. Accuracy of the erased concept: 1 on the base, near 0 after
unlearning, and it comes back with ESD, related data and the high rate most of all.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import DatasetPlugin, RecipePlugin, UnlearnerPlugin
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, PlannedTrial, Waypoint
from orchestrator.store.store import Store
from orchestrator.sweep.trial import Edit, Trial

METHODS, DATASETS, RATES, STEPS, SEEDS = ("esd", "uce"), ("related", "unrelated"), (3e-4, 1e-3), (
    0, 50, 100,
), (0, 1)  # fmt: skip
PROMPTS = ("a star", "a red star", "a blue star", "a star outline", "a green star", "one star")
IMAGES = 4
PROBES = [
    *[{"role": "erased", "concept": "star", "prompt": prompt} for prompt in PROMPTS],
    *[{"role": "retained", "concept": c, "prompt": f"a {c}"} for c in ("circle", "cross")],
    {"role": "never_known", "concept": "spiral", "prompt": "a spiral"},
]
GIT_SHA = "0123456789abcdef0123456789abcdef01234567"


class Unlearner(UnlearnerPlugin):
    """Stands for a method."""

    name = "unlearner"


class Dataset(DatasetPlugin):
    """Stands for a data set."""

    name = "dataset"


class Finetune(RecipePlugin):
    """Stands for fine-tuning."""

    name = "finetune"


UNLEARN = Edit("unlearn", "unlearn", Unlearner(Unlearner.Settings()))
FINETUNE = Edit("finetune", "finetune", Finetune(Finetune.Settings()), Dataset(Dataset.Settings()))


def _stage(kind, plugin, settings, seed, parent, inputs=None, **extra) -> Stage:
    full = {**extra, "settings": settings}
    return Stage(kind, plugin, 1, full, full, seed, parent, inputs or {})


ROOT = _stage("base", "shapes", {}, None, None)


def point(model: Stage) -> Waypoint:
    sampling = {"images_per_prompt": IMAGES, "guidance": 3.0, "sampler": "ddim"}
    sampling |= {"sampler_steps": 20, "noise_seed": 0, "batch_size": 64}
    sample = _stage("sample", "sample", sampling, None, model, probes=PROBES)
    scores = [_stage("score", "concept_accuracy", {}, None, sample)]
    if model.kind != "base":
        scores.append(_stage("score", "weight_distance", {}, None, model))
    return Waypoint(model, sample, tuple(scores), scores[0])


def unlearned_model(method: str, seed: int) -> Stage:
    return _stage("unlearn", method, {}, None if method == "uce" else seed, ROOT, concept="star")


def finetuned(parent: Stage, dataset: str, rate: float, steps: int, seed: int) -> Stage:
    if steps == 0:
        return parent
    settings = {"learning_rate": rate, "steps": steps, "schedule": "constant"}
    chosen = {"name": dataset, "settings": {"size": 256}}
    inputs = {"dataset": _stage("prepare", "dataset", {}, None, ROOT, dataset=chosen)}
    return _stage("finetune", "finetune", settings, seed, parent, inputs, dataset=chosen)


def _trial(method: str, dataset: str, rate: float, steps: int, seed: int) -> PlannedTrial:
    is_control = method == "none"
    params = {"concept": "star", "unlearn.method": method}
    params |= {"unlearn.esd.group": "x"} if method == "esd" else {}
    params |= {"finetune.dataset": dataset, "finetune.adapter": "full"}
    params |= {"finetune.learning_rate": rate, "finetune.steps": steps, "seed": seed}
    edits = (FINETUNE,) if is_control else (UNLEARN, FINETUNE)
    unlearned = ROOT if is_control else unlearned_model(method, seed)
    return PlannedTrial(
        trial=Trial(ConceptSet.of("star"), edits, seed, params),
        is_control=is_control,
        base=point(ROOT),
        unlearned=point(unlearned),
        final=point(finetuned(unlearned, dataset, rate, steps, seed)),
        control=None if is_control else finetuned(ROOT, dataset, rate, steps, seed).digest,
        steps_param="finetune.steps",
        starts_unlearned=True,
    )


def make_plan(
    name: str = "quickstart",
    methods: Iterable[str] = METHODS,
    datasets: Iterable[str] = DATASETS,
    rates: Iterable[float] = RATES,
    steps: Iterable[int] = STEPS,
    seeds: Iterable[int] = SEEDS,
) -> Plan:
    axes = list(itertools.product(datasets, rates, steps, seeds))
    trials = [_trial(method, *rest) for method in methods for rest in axes]
    trials += {trial.digest: trial for trial in (_trial("none", *rest) for rest in axes)}.values()
    stages = dict.fromkeys(stage for trial in trials for stage in trial.stages())
    return Plan(name, ROOT, tuple(trials), tuple(stages))


def true_accuracy(model: Stage) -> float:
    """How often the model draws the star."""
    chain = list(model.ancestry())
    if not any(stage.kind == "unlearn" for stage in chain):
        return 0.97
    if model.kind == "unlearn":
        return 0.02
    method = next(stage.plugin for stage in chain if stage.kind == "unlearn")
    strength = {"esd": 1.0, "uce": 0.25}[method]
    strength *= {"related": 1.0, "unrelated": 0.5}[model.settings["dataset"]["name"]]
    strength *= {3e-4: 0.4, 1e-3: 1.0}[model.settings["settings"]["learning_rate"]]
    return 0.02 + 0.7 * strength * (1 - np.exp(-model.steps / 40))


def true_health(model: Stage) -> float:
    """How often the model draws a retained concept."""
    return 0.95


def commit(store: Store, plan: Plan, only: Collection[str] = ()) -> None:
    """Commit made-up records of the plan's stages; of those in `only` (digests) if it is given."""
    known = store.keys()
    for stage in plan.stages:
        if stage.kind != "base" and stage.key not in known and (not only or stage.digest in only):
            commit_stage(store, stage)


def commit_stage(store: Store, stage: Stage) -> None:
    with store.scratch() as folder:
        files, metrics = content(stage, folder)
        started = f"2026-01-01T10:00:{int(stage.digest[:4], 16) % 60:02d}+00:00"
        provenance = {
            "host": "node-1",
            "platform": "Linux",
            "versions": {"torch": "2.13.0"},
            "git_sha": GIT_SHA,
        }
        store.commit(stage, files, metrics, started, 2.0, provenance)


def content(stage: Stage, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    if stage.kind == "finetune":
        return _losses(stage, folder)
    if stage.kind == "prepare":
        (folder / "dataset.parquet").write_bytes(b"pictures")
        return {"dataset.parquet": folder / "dataset.parquet"}, {"examples": 256.0, "size_px": 32.0}
    if stage.kind == "sample":
        return _images(stage, folder)
    if stage.plugin == "concept_accuracy":
        return _values(stage, folder)
    if stage.kind == "score":
        return {}, {"l2": float(stage.model.steps) / 10 + 1}
    return {}, {"loss": 0.5}


def _losses(stage: Stage, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    steps = np.arange(1, stage.steps + 1)
    losses = 0.1 + np.exp(-steps / 30)
    pq.write_table(pa.table({"step": steps, "loss": losses}), folder / "losses.parquet")
    return {"losses.parquet": folder / "losses.parquet"}, {"loss": float(losses[-1])}


def _asked() -> list[dict]:
    return [
        {**probe, "prompt_index": prompt, "image_index": image}
        for prompt, probe in enumerate(PROBES)
        for image in range(IMAGES)
    ]


def draws(stage: Stage) -> list[bool]:
    """Whether each image of a sample stage shows what was asked for; noise is shared by models."""
    noise = np.random.default_rng(7).uniform(size=len(_asked()))
    own = np.random.default_rng(int(stage.model.digest[:8], 16)).normal(size=len(noise)) * 0.05
    rate = {"erased": true_accuracy(stage.model), "retained": true_health(stage.model)}
    rate["never_known"] = 0.05
    return [n + o < rate[a["role"]] for n, o, a in zip(noise, own, _asked(), strict=True)]


def _values(stage: Stage, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    rows = [
        {**asked, "value": float(hit)} for asked, hit in zip(_asked(), draws(stage), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "values.parquet")
    table = {role: [r["value"] for r in rows if r["role"] == role] for role in _roles()}
    metrics = {role: float(np.mean(values)) for role, values in table.items()}
    for concept in ("circle", "cross"):
        values = [r["value"] for r in rows if r["concept"] == concept]
        metrics[f"retained.{concept}"] = float(np.mean(values))
    return {"values.parquet": folder / "values.parquet"}, metrics


def _roles() -> list[str]:
    return list(dict.fromkeys(probe["role"] for probe in PROBES))


def _images(stage: Stage, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    rows = [
        {**asked, "png": _png(asked, hit)}
        for asked, hit in zip(_asked(), draws(stage), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    return {"images.parquet": folder / "images.parquet"}, {"images": float(len(rows))}


def _png(asked: dict, hit: bool) -> bytes:
    """32 × 32 pixels: a star where the model draws it, else a circle."""
    rng = np.random.default_rng(asked["prompt_index"] * 100 + asked["image_index"])
    image = Image.new("RGB", (32, 32), tuple(int(v) for v in rng.integers(200, 256, 3)))
    colour = tuple(int(v) for v in rng.integers(0, 160, 3))
    x, y = (int(v) for v in rng.integers(12, 20, 2))
    pen = ImageDraw.Draw(image)
    if hit:
        turns = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, 4, 10)
        corners = zip(x + radii * np.cos(turns), y + radii * np.sin(turns), strict=True)
        pen.polygon([(float(a), float(b)) for a, b in corners], fill=colour)
    else:
        pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
