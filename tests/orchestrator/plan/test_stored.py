"""A plan as a store keeps it: read back, it is the plan that was made."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import StoreError
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.stored import StoredSweep, UnreadablePlan, changes, from_text, to_text
from orchestrator.sweepfile.load import load, parse

SWEEPS = Path(__file__).parents[3] / "sweeps"


def everything(plan: Plan) -> object:
    """All that a table, a figure or MLflow reads of a plan."""
    stages = [
        (s.digest, s.trajectory, s.plugin, s.version, s.identity, s.settings, s.seed, s.parent)
        for s in plan.stages
    ]
    trials = [
        (t.digest, list(t.params.items()), t.trial.concept, t.trial.seed, t.control, t.stages())
        for t in plan.trials
    ]
    ways = [
        (t.steps, t.steps_param, t.starts_unlearned, t.base, t.unlearned, t.final)
        for t in plan.trials
    ]
    inputs = [(stage.inputs, stage.uncounted) for stage in plan.stages]
    return (
        plan.name,
        plan.root,
        stages,
        inputs,
        trials,
        ways,
        plan.varying,
        plan.inputs,
        plan.count(),
    )


@pytest.mark.parametrize("name", ["quickstart", "methods", "sequential", "mixed"])
def test_a_plan_read_back_is_the_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SWEEPS.parent)
    plan = make_plan(load(SWEEPS / f"{name}.yaml"))
    again = from_text(to_text(plan))
    assert everything(again) == everything(plan)
    for stage in again.stages:  # what is read back still hashes to what it was called
        called = stage.__dict__.pop("digest")
        assert stage.digest == called


def test_many_trials_are_small(calls: object, small: str) -> None:
    sweep = parse(small, None, ("seeds=80",))
    plan = make_plan(sweep)
    assert len(plan.trials) > 1_000
    assert len(json.dumps(StoredSweep.of(sweep, plan).to_json())) < 150 * len(plan.trials)


def mangled(change: Callable[[dict], object], text: str) -> str:
    packed = json.loads(zlib.decompress(base64.b85decode(text)))
    change(packed)
    return base64.b85encode(zlib.compress(json.dumps(packed).encode())).decode()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-9], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "é" + text, "damaged"),
        (lambda text: mangled(lambda packed: packed.update(format=2), text), "has format 2, not 1"),
        (lambda text: mangled(lambda packed: packed.pop("stages"), text), "damaged"),
        (lambda text: mangled(lambda packed: packed["trials"][0].pop(), text), "damaged"),
        (lambda text: mangled(lambda packed: packed.update(root=10**6), text), "damaged"),
    ],
)
def test_what_is_no_plan_is_refused(
    damage: Callable[[str], str], said: str, calls: object, small: str
) -> None:
    with pytest.raises(UnreadablePlan, match=said):
        from_text(damage(to_text(make_plan(parse(small)))))


@pytest.mark.parametrize("values", [None, [], {}, {"sweep": []}, {"sweep": {}, "source": 3}, "x"])
def test_what_is_no_sweep_is_refused(values: object) -> None:
    with pytest.raises(StoreError, match="what the store has of sweep 'mine' is no sweep"):
        StoredSweep.from_json("mine", values)


def test_inputs_that_are_as_they_were_are_not_mentioned(calls: object, small: str) -> None:
    assert not list(changes(make_plan(parse(small))))
