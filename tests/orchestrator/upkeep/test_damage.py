"""Damage to any one entry of a store, of any kind: every command goes on, says so, and heals."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.main import app
from orchestrator.core.artifacts import Failure
from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home
from orchestrator.run.job import open_job
from orchestrator.schedule.leases import Leases
from orchestrator.store.store import Store
from tests.conftest import RECORDING, SMALL

SETTINGS = ("seeds=1", "unlearn=nudge", "finetune.learning_rate=1e-3", "finetune.steps=[1]")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_its_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.unlink()
        make(path)

    return work


def write(text: str) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.write_text(text)

    return work


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    (path / "in").mkdir(parents=True)
    (path / "in" / "it").write_text("x")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
    "folder": in_its_place(folder),
    "dangling link": in_its_place(lambda path: path.symlink_to("nowhere")),
    "link to itself": in_its_place(lambda path: path.symlink_to(path.name)),
    "link to a folder": in_its_place(lambda path: path.symlink_to(path.parent)),
    "pipe": in_its_place(pipe),
    "deep": write("[" * 100_000),
    "another type": write('["seal", 7]'),
}

ENTRIES = {
    "score's record": "records/{score}.json",
    "model's record": "records/{unlearn}.json",
    "values": "objects/{score}-*/values.parquet",
    "images": "objects/{sample}-*/images.parquet",
    "weights": "objects/{unlearn}-*/weights.safetensors",
    "losses": "objects/{finetune}-*/losses.parquet",
    "checkpoint": "checkpoints/{trajectory}/train/1/checkpoint.json",
    "checkpoint's tensors": "checkpoints/{trajectory}/train/1/tensors.safetensors",
    "sweep": "sweeps/small.json",
    "failure": "failures/{failed}.json",
    "head": "heads/*.json",
    "lease": "leases/{trajectory}/*",
}


def resurge(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments)
    known = (SystemExit, ResurgeError)
    if result.exception is not None and not isinstance(result.exception, known):
        raise result.exception
    return result


@dataclasses.dataclass
class Finished:
    """A finished sweep in a home; `renew` puts its store back as it was, with what a killed head
    leaves behind: a claim, a failure, a fine-tune without its record and its checkpoint.
    """

    root: Path
    names: dict[str, str]
    table: str

    @property
    def file(self) -> str:
        return str(self.root / "small.yaml")

    def renew(self) -> None:
        shutil.rmtree(self.root / "home" / "store")
        shutil.copytree(self.root / "kept", self.root / "home" / "store")

    def path(self, entry: str) -> Path:
        [found] = (self.root / "home" / "store").glob(ENTRIES[entry].format(**self.names))
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    root = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESURGE_PLUGINS", str(RECORDING))
        patch.setenv("RESURGE_HOME", str(root / "home"))
        (root / "small.yaml").write_text(f"{SMALL}keep: [unlearned, checkpoints]\n")
        assert resurge("run", str(root / "small.yaml"), *SETTINGS).exit_code == 0
        table = resurge("results", "small", "--csv").stdout
        plan = open_job("small", (), Home.find(None)).plan
        trial = next(trial for trial in plan.trials if not trial.is_control)
        tuned = trial.final.model
        store = Store(root / "home" / "store")
        names = {
            "score": trial.final.scores[0].key,
            "sample": trial.unlearned.sample.key,
            "unlearn": trial.unlearned.model.key,
            "finetune": next(s.key for s in plan.stages if s.kind == "finetune" and s != tuned),
            "failed": tuned.key,
            "trajectory": str(tuned.trajectory)[:16],
        }
        (root / "home" / "store" / "records" / f"{tuned.key}.json").unlink()
        store.put_failure(tuned, Failure("no luck", None))
        dead = Leases(store, "small")
        dead.process = dataclasses.replace(dead.process, born=dead.process.born - 1)
        dead.beat()
        store.files.write(f"leases/{names['trajectory']}/{dead.process.id}", "")
        shutil.copytree(root / "home" / "store", root / "kept")
        yield Finished(root, names, table)


def spoil(finished: Finished, damage: str) -> None:
    """Every kind of entry at once."""
    finished.renew()
    for path in [finished.path(entry) for entry in ENTRIES]:
        if path.stat().st_size or damage != "flipped":  # a claim is an empty file
            DAMAGE[damage](path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_stops_no_command_and_is_said(finished: Finished, damage: str) -> None:
    for command in (
        ("status", finished.file),
        ("results", finished.file, "--csv"),
        ("list", "sweeps"),
        ("store", "du"),
        ("store", "gc", "--yes", "--quarantine", "--older-than", "0s"),
    ):
        spoil(finished, damage)
        assert resurge(*command).exit_code == 0, command
    spoil(finished, damage)
    found = resurge("store", "verify")
    # A stage's record and its file count once, as a checkpoint's two do; a claim is no document.
    count = 2 if damage == "gone" else 8
    assert (found.exit_code, f" {count} damaged" in found.output) == (1, True), found.output


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"another type", "link to a folder"}))
def test_a_run_makes_again_what_is_damaged(finished: Finished, damage: str) -> None:
    spoil(finished, damage)
    ran = resurge("run", finished.file, *SETTINGS)
    assert ran.exit_code == 0, ran.output
    assert resurge("results", "small", "--csv").stdout == finished.table


def test_what_no_run_needs_is_found_and_made_again_too(finished: Finished) -> None:
    spoil(finished, "flipped")
    assert resurge("store", "verify", "--repair").exit_code == 1
    assert resurge("run", finished.file, *SETTINGS).exit_code == 0
    assert resurge("store", "verify").exit_code == 0
    assert resurge("results", "small", "--csv").stdout == finished.table


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{}"])
def test_a_sweep_that_cannot_be_read_is_named_and_its_file_still_runs(
    finished: Finished, text: str
) -> None:
    finished.renew()
    finished.path("sweep").write_text(text)
    for command in ("status", "results"):
        shown = resurge(command, "small")
        assert "sweeps/small.json is damaged" in str(shown.exception)
    assert resurge("status", finished.file).exit_code == 0
