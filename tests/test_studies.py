"""Every sweep file that ships says what it is and can be planned, without network and data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from orchestrator.core.registry import find, registry
from orchestrator.plan.doubts import doubts
from orchestrator.plan.plan import make_plan
from orchestrator.sweep.grid import MAX_TRIALS
from orchestrator.sweepfile.load import load

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "sweeps").rglob("*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
COMMAND = re.compile(r"^#   resurge run (\S+) ((?:.*\\\n#)*.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("RESURGE_PLUGINS", raising=False)
    monkeypatch.chdir(ROOT)


def comment(path: Path) -> str:
    """The lines before the first that is no comment."""
    return re.match(r"(?:#.*\n)*", path.read_text()).group()  # type: ignore[union-attr]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_can_be_planned(path: Path) -> None:
    plan = make_plan(load(path))
    trials = [trial for trial in plan.trials if not trial.is_control]
    assert 1 <= len(trials) <= MAX_TRIALS
    assert any(stage.kind == "sample" for stage in plan.stages)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_begins_with_what_it_is(path: Path) -> None:
    assert len(comment(path)) > 80


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_some_metric_scores_every_role_that_is_drawn(path: Path) -> None:
    sweep = load(path)
    evaluate = sweep.evaluate
    assert evaluate.gives_resurgence
    for erased in sweep.grid.known_sets():
        asked = evaluate.asked_of(evaluate.probes(sweep.base, erased))
        assert "erased" in asked.pictures
        scored = {role for metric in evaluate.metrics for role in metric.roles(asked)}
        assert scored == set(asked.pictures)
        primary = next(metric for metric in evaluate.metrics if metric.gives_resurgence)
        assert primary.roles(asked) >= set(asked.pictures) - {"never_known"}


PUBLISHED = ("celebrity", "illusion", "nudity", "objects", "paper", "resalign", "styles")
TRAINED_ON = {"celebrity": "1 of the 5", "paper": "5 of the 25"}
"""MACE's preset trains on the first of MACE's own five prompts, for each person."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_studies_ask_in_prompts_that_methods_do_not_train_on(name: str) -> None:
    sweep = load(ROOT / "sweeps" / f"{name}.yaml", ("seeds=1",))
    leaks = [one for one in doubts(make_plan(sweep).trials, sweep.base) if "scored as" in one]
    allowed = TRAINED_ON.get(name)
    assert all(allowed is not None and allowed in leak for leak in leaks)


def test_every_published_number_of_maces_table_stands_beside_a_trial() -> None:
    sweep = load(ROOT / "sweeps" / "mace_celebrity.yaml")
    assert sweep.reference is not None
    sizes = {f"celebrities-{count}": count for count in (1, 5, 10, 100)}
    assert {one.name: len(one.concepts) for one in sweep.grid.known_sets()} == sizes
    trials = [p.trial.params for p in make_plan(sweep).trials if not p.is_control]
    begun = [params for params in trials if params["finetune.steps"] == 0]
    assert len(begun) == len(sizes) * 6
    for params in begun:
        if params["unlearn.method"] == "mace":
            assert params["unlearn.mace.preset"] == f"sd-{params['concept'].replace('ies', 'y')}"
        (row,) = [
            row
            for row in sweep.reference.rows
            if all(params.get(name) == value for name, value in row.items() if "." in name)
            and row["concept"] == params["concept"]
        ]
        assert {"base", "unlearned"} <= row.keys()
        assert ("retained" in row) == (params["unlearn.method"] == "uce")
    assert len(sweep.reference.rows) == len(begun)
    asked = sweep.evaluate.asked_of(sweep.evaluate.probes(sweep.base, sweep.grid.known_sets()[-1]))
    assert len(asked.retained) == 100
    assert asked.pictures == {"erased": 2_500, "other": 2_500}


TUNED = sorted((ROOT / "sweeps" / "tuning").glob("*.yaml"))


def test_every_method_of_ours_has_a_sweep_behind_its_defaults() -> None:
    ours = {name for name, cls in registry("unlearner").items() if cls.changes and cls.is_method}
    assert {path.stem for path in TUNED} == ours


@pytest.mark.parametrize("path", TUNED, ids=[path.stem for path in TUNED])
def test_the_defaults_are_a_point_of_that_sweep(path: Path) -> None:
    cls = find("unlearner", path.stem)
    trials = [p.trial for p in make_plan(load(path)).trials if not p.is_control]
    tried = [edit.plugin.settings.full() for trial in trials for edit in trial.edits]
    assert cls.Settings().full() in tried
    assert len(tried) > 1


def test_no_two_share_a_name() -> None:
    names = [load(path, ("seeds=1",)).name for path in FILES]
    assert len(set(names)) == len(names)


COMMANDS = [(file, options) for path in FILES for file, options in COMMAND.findall(comment(path))]


@pytest.mark.parametrize(("file", "options"), COMMANDS, ids=[file for file, _ in COMMANDS])
def test_the_commands_in_the_comments_work(file: str, options: str) -> None:
    overrides = shlex.split(options.replace("\\\n#", " "))
    changed = load(ROOT / file, (*overrides, "seeds=1"))
    assert changed.name != load(ROOT / file, ("seeds=1",)).name
    assert changed.base.fingerprint() != load(ROOT / file, ("seeds=1",)).base.fingerprint()
