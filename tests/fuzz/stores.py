"""A finished sweep's store, damaged in one place: a record, an object, a head, a state."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from orchestrator.core.artifacts import Failure
from orchestrator.core.liveness import Process
from orchestrator.core.stage import Stage
from orchestrator.schedule.leases import Head
from orchestrator.store.paths import HEADS, LEASES, json_path
from orchestrator.store.store import Store
from tests.conftest import SMALL
from tests.fuzz.cases import Answer, Area, Fault, damaged, resurge
from tests.fuzz.trees import changes, mutated, nudged, odd, paths, value_at

LESS = ("seeds=1", "unlearn=nudge", "finetune.learning_rate=1e-3", "finetune.steps=[0,1]")
DEEP = 100_000
AMOUNTS = {"pictures", "controls_scored"}
"""Of how much a row speaks; less of it says what is missing, as `trials_scored` does."""


class Stores(Area):
    """Numbers are the undisturbed ones, or it is said what is missing; a run mends the store."""

    name = "stores"
    full = 500
    quick = 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sound, self.home, self.cases = folder / "sound", folder / "home", 0
        self.file = folder / "small.yaml"
        self.file.write_text(SMALL)
        if (answer := resurge("run", str(self.file), *LESS, "--home", str(self.sound))).code:
            raise RuntimeError(answer.err or answer.out)
        self.remains()
        self.places = sorted(p for p in (self.sound / "store").rglob("*") if p.is_file())
        self.rows = self.results(self.sound)

    def remains(self) -> None:
        """What else a store can hold: a failure, a training state, a head that is gone."""
        store = Store(self.sound / "store")
        stage = Stage("base", "gone", 1, {"settings": {}}, {"settings": {}}, None, None)
        store.put_failure(stage, Failure("no luck", None, "nan", ((1, 0.5),)))
        with store.scratch() as folder:
            (folder / "t").write_bytes(b"state")
            store.put_checkpoint(stage.digest, 3, folder / "t", {"step": 3})
        dead = dataclasses.replace(Process.here(), pid=1, born=0.5)
        head = Head(dead, 3, time.time(), "small", 1.0)
        store.files.write(json_path(HEADS, dead.id), json.dumps(head.to_json()))
        unit = min(store.keys())
        store.files.write(f"{LEASES}/{unit}/{dead.id}", "")

    def results(self, home: Path) -> list[Any]:
        answer = resurge("results", "small", "--json", "--home", str(home))
        return json.loads(answer.out)

    def case(self, rng: random.Random) -> str:
        shutil.rmtree(self.home, ignore_errors=True)
        self.cases += 1  # a place of its own: MLflow keeps its database open
        self.home = self.folder / f"home{self.cases}"
        shutil.copytree(self.sound, self.home, copy_function=_copied)
        place = rng.choice(self.places)
        path = self.home / place.relative_to(self.sound)
        self.say(f"{path.relative_to(self.home)}: {self.damage(path, rng)}")
        asked = ["status", "results", "verify", "gc"]
        rng.shuffle(asked)
        is_said = False
        for what in asked:
            is_said |= self.ask(what)
        outcome = self.run(rng)
        if (found := self.results(self.home)) != self.rows:
            raise Fault(f"after the run other results: {difference(found, self.rows)}")
        return outcome if is_said or outcome != "mended" else "mended unasked"

    def ask(self, what: str) -> bool:
        """A command that reads; True if it says that something is wrong."""
        home = ("--home", str(self.home))
        if what == "verify":
            return resurge("store", "verify", *home).code != 0
        if what == "gc":
            return resurge("store", "gc", *home).code != 0
        if what == "status":
            answer = resurge("status", "small", *home)
            return answer.code != 0 or "4/4" not in answer.out
        answer = resurge("results", "small", "--json", *home)
        if answer.code:
            return True
        self.compare(json.loads(answer.out), answer)
        return bool(answer.err.strip())

    def compare(self, rows: list[Any], answer: Answer) -> None:
        """Each row is the undisturbed one, or says that trials are missing."""
        sound = {key_of(row): row for row in self.rows}
        for row in rows:
            known = sound.get(key_of(row))
            if known is None:
                raise Fault(f"a row of another sweep: {row}")
            if row == known or row["trials_scored"] < known["trials_scored"]:
                continue
            lacks = {name for name, value in row.items() if value != known[name]}
            if all(row[n] is None or (n in AMOUNTS and row[n] < known[n]) for n in lacks):
                continue  # what hangs on a record of a control, or of pictures that were scored
            raise Fault(f"wrong numbers: {difference([row], [known])}\n{answer.err}")

    def run(self, rng: random.Random) -> str:
        """The same command brings everything back, after `verify --repair` at worst."""
        again = ("run", str(self.file), *LESS, "--home", str(self.home))
        answer = resurge(*again)
        if answer.code == 0:
            return "mended"
        if answer.code == 1:
            raise Fault(f"run fails: {answer.out}\n{answer.err}")
        repair = resurge("store", "verify", "--repair", "--home", str(self.home))
        if resurge(*again).code != 0:
            raise Fault(
                f"not to be mended: {answer.err}\nverify --repair: {repair.out} {repair.err}"
            )
        return "mended by verify --repair"

    def damage(self, path: Path, rng: random.Random) -> str:
        """What is wrong there now."""
        content = path.read_bytes()
        path.unlink()
        ways = [
            "bytes",
            "bytes",
            "gone",
            "empty",
            "cut",
            "folder",
            "full_folder",
            "dead_link",
            "loop",
            "other",
        ]
        if path.suffix == ".json":
            ways += ["tree"] * 8 + ["digit"] * 4 + ["deep", "letter", "letter"]
        how = rng.choice(ways)
        match how:
            case "bytes":
                path.write_bytes(damaged(content, rng))
            case "gone":
                pass
            case "empty":
                path.touch()
            case "cut":
                path.write_bytes(content[: rng.randrange(len(content) + 1)])
            case "folder":
                path.mkdir()
            case "full_folder":
                path.mkdir()
                (path / "x.json").write_bytes(content)
            case "dead_link":
                path.symlink_to("nowhere")
            case "loop":
                path.symlink_to(path.name)
            case "other":
                other = self.home / rng.choice(self.places).relative_to(self.sound)
                path.write_bytes(other.read_bytes() if other.is_file() else b"x")
                return f"the content of {other.name}"
            case "deep":
                opening = rng.choice(("[", '{"a":', '{"metrics":'))
                path.write_text(opening * DEEP + ("1" + {"[": "]"}.get(opening, "}") * DEEP))
            case "digit" | "letter":
                kind = str.isdigit if how == "digit" else str.isalpha
                text = content.decode()
                at = rng.choice([i for i, c in enumerate(text) if kind(c)])
                new = rng.choice("0123456789" if how == "digit" else "abcxyzABC")
                path.write_text(text[:at] + new + text[at + 1 :])
                return f"{text[max(0, at - 30) : at + 30]!r}: {text[at]} became {new}"
            case "tree":
                tree = json.loads(content)
                new = mutated(tree, rng, lambda r: _near(tree, r) if r.random() < 0.5 else odd(r))
                path.write_text(json.dumps(new))
                return f"JSON {changes(tree, new)!r:.600}"
        return how


def _near(tree: Any, rng: random.Random) -> Any:
    """Something like a value that stands elsewhere."""
    return nudged(value_at(tree, rng.choice(list(paths(tree)))), rng)


def _copied(source: str, target: str) -> None:
    """Links where the product replaces files whole, copies where SQLite writes into them."""
    if "/store/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def key_of(row: dict[str, Any]) -> str:
    """The settings that a row is about."""
    names = ("base", "concept", "unlearn.method", "finetune.steps", "is_control")
    return repr([row.get(name) for name in names])


def difference(found: list[Any], known: list[Any]) -> str:
    """The fields that are not the same."""
    if len(found) != len(known):
        return f"{len(found)} rows and not {len(known)}"
    pairs = zip(found, known, strict=True)
    return "; ".join(
        f"{name} {one.get(name)!r} and not {other.get(name)!r}"
        for one, other in pairs
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    )
