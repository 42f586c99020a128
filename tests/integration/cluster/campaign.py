"""A sweep on a lab: submitted, watched, compared with one that nothing disturbed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.trials_table import table
from orchestrator.store.store import Store
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse
from tests.integration.cluster.lab import BIN, ROOT, Lab

PLUGINS = str(ROOT / "tests" / "recording")
LOG_LINE = re.compile(r"^\S+ \S+ (?P<stage>.*) (?P<what>begins|done|was there)$")


def tiny(name: str, amounts: int, first: int = 1) -> str:
    """A sweep of tiny stages: so many unlearnings, four fine-tuned models each.

    Those of another `first` are others.
    """
    strengths = [round(0.001 * k, 3) for k in range(first, first + amounts)]
    return json.dumps(
        {
            "name": name,
            "base": "tiny",
            "concept": "star",
            "edits": [
                {"unlearn": {"nudge": {"amount": strengths}}},
                {
                    "finetune": {
                        "dataset": "dots",
                        "batch_size": 2,
                        "steps": [2, 4],
                        "learning_rate": [1e-3, 1e-2],
                    }
                },
            ],
            "evaluate": {"metrics": ["glow", "brightness"], "images_per_prompt": 1, "retain": []},
            # One thread everywhere, so that sums are added in one order.
            "resources": {"threads": 1, "gpus": 1},
        }
    )


@dataclass
class Campaign:
    """A sweep's file, and the store that it goes to."""

    lab: Lab
    text: str
    store: str

    def __post_init__(self) -> None:
        os.environ.setdefault("RESURGE_PLUGINS", PLUGINS)
        self.sweep: Sweep = parse(self.text)
        self.plan: Plan = make_plan(self.sweep)
        self.path = self.lab.root / f"{self.sweep.name}.yaml"
        self.path.write_text(self.text)

    def resurge(self, *words: str, timeout_s: float = 120.0, **more: str) -> tuple[int, str]:
        """Run the command on the user's host: its exit code, and what it printed."""
        user = self.lab.hosts["user"]
        done = subprocess.run(
            user.command(BIN / "resurge", *words),
            env=self._environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=user.environment()["HOME"],
        )
        return done.returncode, done.stdout + done.stderr

    def submit(self) -> str:
        """Send it; what was said.

        Raises:
            RuntimeError: it was refused.
        """
        code, said = self.resurge(*self._submit)
        if code:
            raise RuntimeError(said)
        return said

    def follow(self) -> subprocess.Popen[str]:
        """Send it and go on watching."""
        user = self.lab.hosts["user"]
        return subprocess.Popen(
            user.command(BIN / "resurge", *self._submit, "--follow"),
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=user.environment()["HOME"],
        )

    def state(self) -> str:
        """What `resurge status` says."""
        return self.resurge("status", self.sweep.name, "--cluster", self.lab.dashboard)[1]

    def opened(self) -> Store:
        """The store, from here, past the proxy."""
        return Store(self.store)

    def recorded(self) -> int:
        """How many of the plan's stages have a record."""
        keys = self.opened().keys()
        return sum(stage.key in keys for stage in self.plan.stages)

    @property
    def _submit(self) -> tuple[str, ...]:
        return ("submit", str(self.path), "--cluster", self.lab.dashboard)

    def _environment(self, **more: str) -> dict[str, str]:
        own = {"RESURGE_PLUGINS": PLUGINS, "RESURGE_STORE": self.store, **more}
        return self.lab.hosts["user"].environment(**own)


def undisturbed(text: str, folder: Path) -> Store:
    """The store of the same sweep, run in one process that nothing disturbs."""
    home = folder / "undisturbed"
    path = folder / "undisturbed.yaml"
    path.write_text(text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "RESURGE_PLUGINS": PLUGINS}
    environment["OMP_NUM_THREADS"] = "1"
    command = [BIN / "resurge", "run", path, "resources.executor=inline", "--home", home]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return Store(home / "store")


@dataclass(frozen=True)
class Verdict:
    """How a disturbed sweep compares with the undisturbed one, by stage.

    `rows` of the results table are others; `again` are stages that were begun more than once,
    because they were in flight when something happened; `twice` those that were finished more than
    once.
    """

    stages: int
    lost: int
    wrong: int
    rows: int
    again: int
    twice: int


def compare(campaign: Campaign, truth: Store) -> Verdict:
    """Every record of the plan, number by number and file by file; then the results table."""
    store = campaign.opened()
    lost = wrong = 0
    for stage in campaign.plan.stages:
        mine, theirs = store.get(stage), truth.get(stage)
        assert theirs is not None
        if mine is None:
            lost += 1
        else:
            wrong += _content(mine) != _content(theirs)
    begun, finished = _counts(campaign.lab.root, campaign.sweep.name)
    return Verdict(
        stages=len(campaign.plan.stages),
        lost=lost,
        wrong=wrong,
        rows=_other_rows(_table(campaign, store), _table(campaign, truth)),
        again=sum(count > 1 for count in begun.values()),
        twice=sum(count > 1 for count in finished.values()),
    )


def _table(campaign: Campaign, store: Store) -> list[dict[str, Any]]:
    """The results table, but for how long it took."""
    return table(campaign.plan, store).drop_columns(["seconds"]).to_pylist()


def _other_rows(mine: list[Any], theirs: list[Any]) -> int:
    assert mine, "a table without rows compares with everything"
    pairs = zip_longest(mine, theirs)
    return sum(repr(one) != repr(other) for one, other in pairs)  # NaN is equal to itself


def _content(record: Any) -> Any:
    files = {name: (blob.sha256, blob.size_bytes) for name, blob in record.objects.items()}
    return record.digest, dict(record.metrics), files, dict(record.inputs)


def _counts(root: Path, name: str) -> tuple[Counter[str], Counter[str]]:
    """By stage how often the logs of all hosts say that it was begun, and finished."""
    begun, finished = Counter[str](), Counter[str]()
    for path in (root / "homes").rglob(f"logs/{name}/*.log"):
        for line in path.read_text(errors="replace").splitlines():
            if found := LOG_LINE.match(line):
                begun[found["stage"]] += found["what"] == "begins"
                finished[found["stage"]] += found["what"] == "done"
    return begun, finished
