"""What one GPU does: fine-tuning, drawing, every unlearner's step, memory, and shares of the GPU.

    python -m benchmarks.gpu run [FILE] [--brief] [--minutes 8]    # benchmarks/cards/CARD.json
    python -m benchmarks.gpu docs                                  # docs/gpu.md, from all of them

Stable Diffusion 1.4's architecture with random weights at 512 pixels, and the bundled model where
it is said. Few packages are needed: torch, diffusers, transformers, accelerate, peft, and what
planning reads. Every part is run even if another failed; a part that failed says so in the file.
Parts that would begin after the given minutes are left out, and the file says that too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import drawing, finetuning, stages
from benchmarks.graphs import decoded, graphed_pass, graphed_step
from benchmarks.models import new_pipeline, pictures
from benchmarks.sides import Line, rate, wait_for_device
from orchestrator.core.registry import registry
from orchestrator.sweepfile.load import parse
from tests.full_size.full_run import ONE_PICTURE
from workers.recipes import FinetuneSettings
from workers.training.finetune import Trainer

if TYPE_CHECKING:
    from tests.full_size.presets import Case
    from workers.interfaces.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
CARDS = Path(__file__).parent / "cards"
SIDE_PX = 512
SHARERS = (1, 2, 4, 8)
SHARE_S = 4.0
SAME_SWEEP = """
name: same
base: shapes
concept: star
edits:
  - unlearn: [uce, {esd: {iterations: 60}}, {spm: {iterations: 60}}]
  - finetune: {dataset: related, learning_rate: 3.0e-4, steps: [40]}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 4, controls: false}
seeds: 1
"""
"""Run on the GPU and on the CPU; the scores are compared."""


@dataclass
class Part:
    """A table of the report. `failure` says why there is none."""

    title: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0

    def add(self, line: Line) -> None:
        """A comparison as a row."""
        self.columns = ["", "unit", "ours", "peer", "ratio", "target", ""]
        target = "" if line.target is None else f"≥ {line.target:g}"
        numbers = (f"{line.ours:.3g}", f"{line.peer:.3g}", f"{line.ratio:.2f}")
        self.rows.append([line.what, line.unit, *numbers, target, line.verdict])


class Bench:
    """The parts, one after the other."""

    def __init__(self, console: Console, file: Path, minutes: float, brief: bool) -> None:
        self.console, self.file, self.brief = console, file, brief
        self.begin = time.monotonic()
        self.end = self.begin + 60 * minutes
        self.parts: list[Part] = []
        self.pipe: Pipeline | None = None

    def run(self) -> None:
        """Run all, saving after each."""
        with tempfile.TemporaryDirectory(dir=_roomy()) as folder:
            todo: list[tuple[str, Callable[[Part], None]]] = [
                ("Fine-tuning", self.finetuning),
                ("Drawing", self.drawing),
                ("Every preset", lambda part: self.presets(part, Path(folder))),
                ("CUDA graphs", self.graphs),
                ("Stages", lambda part: self.stages(part, Path(folder))),
                ("What else would pay", self.compiled),
                ("Shares of the GPU", self.shares),
                ("Same scores as on the CPU", self.same_scores),
            ]
            for title, measure in todo:
                self.part(title, measure)
        self.save()

    def part(self, title: str, measure: Callable[[Part], None]) -> None:
        """One part, whatever becomes of it."""
        part, begin = Part(title), time.monotonic()
        self.parts.append(part)
        if begin > self.end:
            part.failure = "left out: the time was over"
        else:
            try:
                measure(part)
            except Exception as error:
                part.failure = f"{type(error).__name__}: {error}"
                self.console.print("".join(traceback.format_exception(error)), markup=False)
        part.seconds = time.monotonic() - begin
        torch.cuda.empty_cache()
        show(self.console, part)
        self.save()

    def save(self) -> None:
        """What is known so far, as JSON."""
        card = torch.cuda.get_device_properties(0)
        known = {
            "card": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seconds": round(time.monotonic() - self.begin),
            "parts": [asdict(part) for part in self.parts],
        }
        self.file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")

    def sd(self) -> Pipeline:
        """The large model, made once."""
        if self.pipe is None:
            self.pipe = new_pipeline("sd14", "cuda", SIDE_PX)
        return self.pipe

    def finetuning(self, part: Part) -> None:
        """D4: full weights, against the loop of diffusers' example."""
        batch, steps, rounds = (2, 2, 1) if self.brief else (8, 8, 2)
        for precision in ("fp32", "bf16"):
            torch.cuda.reset_peak_memory_stats()
            found = finetuning.compare(self.sd(), precision, batch, steps, rounds)
            part.add(found.line(f"{precision}, batch {batch}, full weights"))
            peak = torch.cuda.max_memory_allocated() / stages.GIB
            part.notes.append(
                f"{precision}: losses differ by {found.loss_difference:.1e} at most, encoding "
                f"{finetuning.PICTURES} pictures once {found.encoding_s:.2f} s, peak {peak:.1f} GiB"
            )
            self.fresh()
        small = new_pipeline("shapes", "cuda")
        found = finetuning.compare(small, "fp32", 16, 10 if self.brief else 40, rounds)
        part.add(found.line("bundled model, fp32, batch 16"))
        part.notes.append("fp32 is TF32 in matrix products and convolutions, on both sides")

    def drawing(self, part: Part) -> None:
        """D5: against StableDiffusionPipeline, batched and one by one."""
        count, steps, rounds = (2, 4, 1) if self.brief else (8, 20, 2)
        for precision in ("fp32", "bf16"):
            found = drawing.compare(self.sd(), precision, count, steps, rounds, singles=2)
            for line in found.lines(f"{precision}, {count} pictures, {steps} steps"):
                part.add(line)
            part.notes.append(f"{precision}: pixels differ by {found.difference:.0f} of 255")
            torch.cuda.empty_cache()
        found = drawing.compare(new_pipeline("shapes", "cuda"), "fp32", 64, 15, rounds, singles=8)
        for line in found.lines("bundled model, fp32, 64 pictures, 15 steps"):
            part.add(line)

    def compiled(self, part: Part) -> None:
        """torch.compile of the UNet's repeated blocks, and channels-last, beside plain."""
        count, steps, batch = (2, 4, 2) if self.brief else (8, 20, 8)
        pipe = self.sd()
        examples = pictures(pipe, 16)
        settings = FinetuneSettings(batch_size=batch, steps=10**9, precision="bf16")

        def draw() -> float:
            drawing.drawn_by_us(pipe, count, steps, "bf16")
            return rate(count, lambda: drawing.drawn_by_us(pipe, count, steps, "bf16"))

        def tune() -> float:
            trainer = Trainer(pipe, settings, examples, 0)
            trainer.train_to(2)
            found = rate(6, lambda: trainer.train_to(8))
            pipe.unet.requires_grad_(False)
            return found

        plain = {"drawing": draw(), "fine-tuning": tune()}
        unet: Any = pipe.unet
        unet.to(memory_format=torch.channels_last)
        last = {"drawing": draw(), "fine-tuning": tune()}
        begin = time.monotonic()
        unet.compile_repeated_blocks()
        both = {"drawing": draw(), "fine-tuning": tune()}
        part.columns = ["bf16", "unit", "plain", "channels-last", "and compiled"]
        for what, unit in (("drawing", "pictures/s"), ("fine-tuning", "steps/s")):
            numbers = [f"{side[what]:.3g}" for side in (plain, last, both)]
            part.rows.append([what, unit, *numbers])
        part.notes.append(f"compiling and both measurements: {time.monotonic() - begin:.0f} s")
        part.notes += [
            f"autoencoder alone, {kind}: {decoded(pipe, count, kind):.1f} pictures/s"
            for kind in (torch.float32, torch.bfloat16)
        ]
        self.fresh()  # a compiled one stays so

    def graphs(self, part: Part) -> None:
        """Passes of the UNet alone, launched one kernel at a time and as one CUDA graph."""
        part.columns = ["UNet alone", "unit", "launched", "graph", "times"]
        said = {"shapes": "bundled model", "sd14": "SD 1.4's size"}
        for name, count in (("shapes", 16), ("shapes", 128), ("sd14", 4), ("sd14", 16)):
            pipe = self.sd() if name == "sd14" else new_pipeline("shapes", "cuda")
            for what, measure in (("drawing", graphed_pass), ("training", graphed_step)):
                plain, graph = measure(pipe, count, 4 if self.brief else 12)
                row = [f"{said[name]}, {what}, batch {count}", "passes/s", f"{plain:.1f}"]
                part.rows.append([*row, f"{graph:.1f}", f"{graph / plain:.2f}"])
                pipe.unet.requires_grad_(False)
                torch.cuda.empty_cache()
        part.notes.append("bf16 autocast; training is forward and backward without the optimiser")
        part.notes.append("nothing uses graphs yet")

    def shares(self, part: Part) -> None:
        """Several workers on one GPU, each training the bundled model: steps a second in all."""
        sharers = SHARERS[:2] if self.brief else SHARERS
        context = multiprocessing.get_context("spawn")
        barrier, found = context.Barrier(max(sharers)), context.SimpleQueue()
        workers = [
            context.Process(target=_share, args=(i, sharers, barrier, found), daemon=True)
            for i in range(max(sharers))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        told = [found.get() for _ in iter(lambda: found.empty(), True)]
        part.columns = ["workers", "steps/s in all", "times one's"]
        totals = {n: sum(rate for count, rate in told if count == n) for n in sharers}
        for count, total in totals.items():
            part.rows.append([str(count), f"{total:.1f}", f"{total / totals[1]:.2f}"])
        part.notes.append("bundled model, full weights, batch 16, fp32")

    def same_scores(self, part: Part) -> None:
        """A sweep's scores on both devices."""
        with _scores_on_cpu() as on_cpu:
            here, out = scores(), on_cpu.communicate(timeout=240)[0]
        there: dict[str, float] = json.loads(out.splitlines()[-1])
        part.columns = ["score", "GPU", "CPU"]
        for name, value in here.items():
            part.rows.append([name, f"{value:.4f}", f"{there[name]:.4f}"])
        largest = max(abs(value - there[name]) for name, value in here.items())
        part.notes.append(f"the largest difference is {largest:.4f}")

    def stages(self, part: Part, folder: Path) -> None:
        """D8: memory and time by stage kind."""
        model = self.saved(folder)
        base = {"diffusers": {"source": str(model), "retained": ["dog"]}}
        sweep = {
            "name": "stages",
            "base": base,
            "concept": "cat",
            "edits": [
                {"unlearn": ["uce"]},
                {
                    "finetune": {
                        "dataset": {"folder": {"path": str(_pictures(folder))}},
                        "adapter": ["full", "lora"],
                        "precision": ["fp32", "bf16"],
                        "batch_size": 4,
                        "steps": 6,
                    }
                },
            ],
            "evaluate": ONE_PICTURE | {"images_per_prompt": 4, "sampler_steps": 4, "guidance": 7.5},
            "seeds": 1,
        }
        self.staged(part, sweep, lambda cost: None if cost.kind == "score" else cost.name)

    def presets(self, part: Part, folder: Path) -> None:
        """Every published preset for Stable Diffusion, a few iterations of it."""
        from tests.full_size.presets import CASES, sweep_of

        model = self.saved(folder)
        cases = CASES[:3] if self.brief else CASES
        # Presets that are equal but for what is cut short are one stage.
        names: dict[str, str] = {}
        for case in cases:
            cls = registry("unlearner")[case.method].Settings
            key = _key(case.method, cls.model_validate(case.settings(folder)).full())
            names[key] = f"{names[key]}, {case.preset}" if key in names else _name(case)
        sweep = sweep_of(folder, model, cases, ONE_PICTURE, "inline")
        self.staged(
            part, sweep, lambda cost: names.get(_key(cost.plugin, cost.settings["settings"]))
        )
        part.notes.append(
            "random weights, two iterations, batches of one, gradient checkpointing, 512 pixels; "
            "the rest as the preset has it"
        )

    def staged(
        self, part: Part, sweep: dict[str, Any], named: Callable[[stages.Cost], str | None]
    ) -> None:
        """A sweep's stages as rows: those that are named, and those that failed."""
        part.columns = ["stage", "s", "peak GiB", "ms a step", ""]

        def told(cost: stages.Cost) -> None:
            if (name := named(cost)) is not None or cost.failure:
                step = "" if cost.step_s is None else f"{1e3 * cost.step_s:.0f}"
                peak = f"{cost.peak_bytes / stages.GIB:.2f}"
                name = name or cost.name
                part.rows.append([name, f"{cost.seconds:.2f}", peak, step, cost.failure[:200]])
                self.console.print(*part.rows[-1], markup=False)
                self.save()

        stages.measure(parse(json.dumps(sweep)), told)

    def fresh(self) -> None:
        """A large model that nothing has trained yet."""
        self.pipe = None
        torch.cuda.empty_cache()

    def saved(self, folder: Path) -> Path:
        """The large model as a folder."""
        model = folder / "model"
        if not model.exists():
            saved: Any = self.sd()
            saved.save_pretrained(model)
            self.fresh()
        return model


def scores() -> dict[str, float]:
    """Of the small sweep, by stage and metric."""
    found: dict[str, float] = {}
    for cost in stages.measure(parse(SAME_SWEEP)):
        if cost.failure:
            raise RuntimeError(cost.failure)
        if cost.kind == "score":
            found |= {f"{cost.of} {name}": value for name, value in sorted(cost.metrics.items())}
    return found


def _scores_on_cpu() -> subprocess.Popen[str]:
    """The small sweep in a process that sees no GPU."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "scores"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "8"},
        stdout=subprocess.PIPE,
        text=True,
    )


def _share(index: int, sharers: Sequence[int], barrier: Barrier, found: Any) -> None:
    """One of several workers: it takes part while there are more than its number."""
    pipe = new_pipeline("shapes", "cuda")
    settings = FinetuneSettings(batch_size=16, steps=10**9)
    trainer = Trainer(pipe, settings, pictures(pipe, 64), 0)
    trainer.train_to(20)
    wait_for_device()
    for count in sharers:
        barrier.wait()
        if index >= count:
            continue
        begin, done = time.perf_counter(), trainer.step
        while time.perf_counter() - begin < SHARE_S:
            trainer.train_to(trainer.step + 10)
        wait_for_device()
        found.put((count, (trainer.step - done) / (time.perf_counter() - begin)))


def _key(method: str, settings: dict[str, Any]) -> str:
    return f"{method} {json.dumps(settings, sort_keys=True)}"


def _name(case: Case) -> str:
    return f"{case.method} {case.preset}"


def _pictures(folder: Path) -> Path:
    """Eight plain squares with captions."""
    from PIL import Image

    made = folder / "pictures"
    if not made.exists():
        made.mkdir()
        rows = []
        for index in range(8):
            Image.new("RGB", (SIDE_PX, SIDE_PX), (30 * index, 80, 120)).save(made / f"{index}.png")
            rows.append(json.dumps({"file_name": f"{index}.png", "text": "a square"}))
        (made / "metadata.jsonl").write_text("\n".join(rows))
    return made


def _roomy() -> str | None:
    """Where some gigabytes are written fast."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def show(console: Console, part: Part) -> None:
    """Print a part."""
    if part.rows:
        table = Table(*part.columns, title=part.title, box=None)
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
    for note in (*part.notes, part.failure and f"{part.title}: {part.failure}"):
        if note:
            console.print(note, markup=False)
    console.print(f"({part.title}: {part.seconds:.0f} s)", markup=False)


def page(known: Sequence[dict[str, Any]]) -> str:
    """docs/gpu.md."""
    lines = [
        "# On a GPU",
        "",
        "Written by `python -m benchmarks.gpu docs` from what `make bench-gpu` measured. Both "
        "sides of every comparison ran in one process, taking turns.",
    ]
    for run in known:
        lines += [
            "",
            f"## {run['card']}",
            "",
            f"{run['memory_gib']} GiB, torch {run['torch']}, Python {run['python']}; "
            f"{run['seconds']} seconds in all.",
        ]
        for part in map(lambda values: Part(**values), run["parts"]):
            lines += ["", f"### {part.title}", ""]
            if part.rows:
                lines += [_row(part.columns), _row(["---"] * len(part.columns))]
                lines += [_row(row) for row in part.rows]
            lines += ["", *[f"- {note}" for note in part.notes]]
            if part.failure:
                lines += [f"- Not measured: {part.failure}"]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "docs", "scores"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--brief", action="store_true", help="see that it works: no figures")
    parser.add_argument("--minutes", type=float, default=8.0)
    asked = parser.parse_args(arguments)
    os.environ.setdefault("RESURGE_PLUGINS", str(ROOT / "tests" / "recording"))
    torch.set_float32_matmul_precision("high")  # as the workers do
    if asked.what == "scores":
        print(json.dumps(scores()))
        return
    if asked.what == "docs":
        known = [json.loads(file.read_text()) for file in sorted(CARDS.glob("*.json"))]
        (ROOT / "docs" / "gpu.md").write_text(page(known))
        return
    if not torch.cuda.is_available():
        raise SystemExit("no GPU was found: torch.cuda.is_available() is false")
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    file = asked.file or CARDS / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    Bench(Console(width=140), file, asked.minutes, asked.brief).run()


if __name__ == "__main__":
    main(sys.argv[1:])
