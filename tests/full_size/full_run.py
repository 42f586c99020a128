"""Running a sweep of full-sized models: what it left, what it took, and the model to begin from."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.full_size.memory_watch import MemoryWatch, descendants, kill

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 20 << 30
TIMEOUT_S = 45 * 60
ONE_PICTURE = {
    "metrics": ["brightness"],
    "images_per_prompt": 1,
    "guidance": 1,
    "sampler_steps": 1,
    "prompts": ["a photo of {concept}"],
    "retain": [],
    "controls": False,
}
"""The least that a model can be asked."""


@dataclass(frozen=True)
class Run:
    """A sweep that has ended; `code` is None if it took too long."""

    name: str
    home: Path
    code: int | None
    output: str
    watch: MemoryWatch

    def records(self) -> list[dict[str, Any]]:
        """In the order in which they began."""
        files = (self.home / "store" / "records").glob("*.json")
        return sorted((json.loads(f.read_text()) for f in files), key=lambda r: str(r["started"]))

    def edit(self, method: str) -> Path:
        """The stored weights of an unlearning."""
        [record] = [r for r in self.records() if r["plugin"] == method]
        folders = (self.home / "store" / "objects").glob(f"{record['digest'][:16]}*")
        [path] = [file for folder in folders for file in folder.glob("*.safetensors")]
        return path

    def failures(self) -> list[dict[str, Any]]:
        """What the store says of stages that failed."""
        files = (self.home / "store" / "failures").glob("*.json")
        return [json.loads(file.read_text()) for file in sorted(files)]

    def report(self) -> str:
        """Peak memory, and each stage's time, memory and files."""
        lines = [f"{self.name}: peak {self.watch.peak_bytes() / 2**30:.2f} GiB"]
        for record in self.records():
            start = datetime.datetime.fromisoformat(record["started"]).timestamp()
            peak = self.watch.peak_bytes(start, start + record["seconds"] + 1) / 2**30
            what = f"{record['kind']} {record['plugin']}"
            lines.append(f"  {what:20} {record['seconds']:6.1f} s  {peak:6.2f} GiB")
        for file in sorted((self.home / "store" / "objects").rglob("*.safetensors")):
            lines.append(f"  {file.parent.name}/{file.name}: {file.stat().st_size / 1e6:.1f} MB")
        return "\n".join(lines)


def build_model(name: str, folder: Path) -> None:
    """In a process of its own, so that this one stays small."""
    script = Path(__file__).with_name("random_pipeline.py")
    subprocess.run([sys.executable, str(script), name, str(folder)], check=True)


def make_pictures(folder: Path) -> None:
    """Two plain squares with captions."""
    folder.mkdir()
    rows = []
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
        rows.append(json.dumps({"file_name": f"{color}.png", "text": f"a {color} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def run_sweep(name: str, root: Path, timeout_s: float = TIMEOUT_S) -> Run:
    resurge = Path(sys.executable).parent / "resurge"
    home = root / "home"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["RESURGE_PLUGINS"] = str(ROOT / "tests" / "recording")
    log = root / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(resurge), "run", str(root / "sweep.yaml"), "--home", str(home)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        watch = MemoryWatch(process.pid, LIMIT_BYTES)
        watch.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None  # the report says how far it came
        finally:
            kill(descendants(process.pid))  # of a finished run, nothing is left
            process.wait()
            watch.stop()
    return Run(name, home, code, log.read_text(), watch)
