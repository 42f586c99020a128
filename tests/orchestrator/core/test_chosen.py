"""A plug-in inside another one's settings, from a sweep file to the plan."""

from __future__ import annotations

import json

import pytest

from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import SweepError
from orchestrator.plan.plan import make_plan
from orchestrator.sweepfile.load import parse
from orchestrator.sweepfile.schema import json_schema

SWEEP = """
name: nested
base: shapes
concept: star
edits:
  - unlearn: uce
  - finetune:
      dataset: {nearest: {of: {related: {size: 96}}, bin: [near, middle, far]}}
      steps: 10
evaluate: {metrics: [concept_accuracy]}
"""


def problems(*overrides: str, text: str = SWEEP) -> list[str]:
    with pytest.raises(SweepError) as raised:
        parse(text, "f.yaml", overrides)
    return [str(problem) for problem in raised.value.problems]


def test_a_part_of_a_set_is_an_axis() -> None:
    plan = make_plan(parse(SWEEP))
    trials = [t for t in plan.trials if not t.is_control]
    assert [t.params["finetune.nearest.bin"] for t in trials] == ["near", "middle", "far"]
    assert plan.varying == ("finetune.nearest.bin",)
    assert plan.count()["prepare"] == 3


def test_the_inner_set_is_an_axis_and_can_be_overridden() -> None:
    sweep = parse(SWEEP, None, ("finetune.nearest.of=[related, {unrelated: {size: 96}}]",))
    assert len([t for t in make_plan(sweep).trials if not t.is_control]) == 6
    size = parse(SWEEP, None, ("finetune.nearest.of.related.size=30",))
    (data, *_) = [s for s in make_plan(size).stages if s.kind == "prepare"]
    assert data.settings["dataset"]["settings"]["of"] == {"related": {"size": 30, "seed": 0}}


def test_defaults_of_the_inner_set_make_no_difference() -> None:
    """Written out or not, it is the same work."""
    keys = [
        {s.key for s in make_plan(parse(SWEEP, None, (f"finetune.nearest.of={of}",))).stages}
        for of in ("related", "{related: {}}", "{related: {size: 256}}", "{related: {seed: 1}}")
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_the_canonical_form_means_the_same() -> None:
    sweep = parse(SWEEP)
    again = parse(json.dumps(sweep.canonical()))
    assert again == sweep
    assert {s.key for s in make_plan(again).stages} == {s.key for s in make_plan(sweep).stages}


@pytest.mark.parametrize(
    ("of", "problem"),
    [
        ("relatd", "of: unknown data set 'relatd'; did you mean 'related'?"),
        ("{related: {sizes: 3}}", "of.related.sizes: unknown key"),
        ("{related: {size: 0}}", "of.related.size: must be >= 1 but got 0"),
        ("{related: {size: [1, 2]}}", "of.related.size: must be one value but got"),
        ("folder", "of: missing key 'path' (a folder"),
        ("{nearest: {of: relatd, k: 1}}", "of.nearest.of: unknown data set 'relatd'"),
        ("{nearest: {of: related}}", "of.nearest: needs either bin"),
    ],
)
def test_a_mistake_inside_is_reported_where_it_stands(of: str, problem: str) -> None:
    text = SWEEP.replace("{related: {size: 96}}", of)
    [found] = problems(text=text)
    assert f"f.yaml:8: edits[1].finetune.dataset.nearest.{problem}" in found


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("finetune.nearest.bins=[[0.5, 0.5]]", "nothing in its bin 'middle'"),
        ("finetune.nearest.size=40", "has 32 pictures but size is 40; lower size"),
        ("finetune.nearest.of={folder: {path: nowhere}}", "nowhere, which does not exist"),
        ("finetune.dataset={mixed: {of: {related: {size: 5}}}}", "needs 230 pictures"),
    ],
)
def test_what_cannot_be_chosen_is_known_when_the_sweep_is_planned(
    override: str, problem: str
) -> None:
    assert problem in problems(override)[0]


def test_the_schema_knows_nested_sets() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())

    def with_set(dataset: object) -> dict[str, object]:
        edits = [{"finetune": {"dataset": dataset}}]
        metrics = {"metrics": ["concept_accuracy"]}
        return {"name": "n", "concept": "star", "edits": edits, "evaluate": metrics}

    assert validator.is_valid(with_set({"nearest": {"of": "related", "bin": ["near", "far"]}}))
    nested = {"mixed": {"of": {"nearest": {"of": {"folder": {"path": "x"}}, "k": 3}}}}
    assert validator.is_valid(with_set(nested))
    assert validator.is_valid(with_set({"mixed": {"of": ["related", {"digits": {"size": 3}}]}}))
    assert not validator.is_valid(with_set({"nearest": {"of": "relatd"}}))
    assert not validator.is_valid(with_set({"nearest": {"of": {"related": {"sizes": 3}}}}))


ATTACK = SWEEP.replace("concept_accuracy", "concept_accuracy, ring_a_bell")
JUDGED = ATTACK.replace("ring_a_bell", "ring_a_bell: {judge: JUDGE}")
CLIP = "{clip_accuracy: {classes: [star, heart]}}"


def attacks(text: str) -> set[str]:
    return {s.key for s in make_plan(parse(text)).stages if s.plugin == "ring_a_bell"}


def test_the_judge_of_an_attack_is_part_of_what_it_is() -> None:
    default = attacks(ATTACK)
    for written in ("concept_accuracy", "{concept_accuracy: {}}"):
        assert attacks(JUDGED.replace("JUDGE", written)) == default
    by_clip = attacks(JUDGED.replace("JUDGE", CLIP))
    others = attacks(JUDGED.replace("JUDGE", CLIP.replace("heart", "drop")))
    assert by_clip.isdisjoint(default)
    assert by_clip.isdisjoint(others)


def test_the_judge_is_stored_with_every_setting() -> None:
    plan = make_plan(parse(JUDGED.replace("JUDGE", CLIP)))
    [judge] = {
        canonical_json(s.settings["settings"]["judge"])
        for s in plan.stages
        if s.plugin == "ring_a_bell"
    }
    assert '"template":"a photo of a {}"' in judge
    assert '"revision":"c237dc49' in judge


def test_the_canonical_form_keeps_the_judge() -> None:
    for judge in ("concept_accuracy", CLIP):
        sweep = parse(JUDGED.replace("JUDGE", judge))
        assert parse(json.dumps(sweep.canonical())) == sweep


def test_the_judge_can_be_overridden() -> None:
    override = "evaluate.metrics.ring_a_bell.judge.clip_accuracy.classes=[star, drop]"
    sweep = parse(JUDGED.replace("JUDGE", CLIP), None, (override,))
    assert sweep.evaluate.metrics[1].settings.judge.plugin.settings.classes == ("star", "drop")


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        ("concept_acuracy", ".judge: unknown metric 'concept_acuracy'; did you mean 'concept_acc"),
        ("fid", ".judge: must be a metric of single pictures but got 'fid' (allowed: aesthetic, "),
        ("{ring_a_bell: {}}", ".judge: must be a metric of single pictures but got 'ring_a_bell'"),
        ("lpips", ".judge: must be a metric of single pictures but got 'lpips'"),
        ("[concept_accuracy]", ".judge: must be one value but got"),
        ("clip_accuracy", ".judge: missing key 'classes'"),
        ("{clip_accuracy: {classes: [star]}}", ".judge.clip_accuracy.classes: classes must be two"),
        ("{clip_accuracy: {clases: [a, b]}}", ".judge.clip_accuracy.clases: unknown key"),
        ("{clip_accuracy: {classes: [red, blue]}}", ": metric 'ring_a_bell': judge: metric 'clip_"),
    ],
)
def test_a_mistake_in_the_judge_is_reported_where_it_stands(judge: str, problem: str) -> None:
    found = problems(text=JUDGED.replace("JUDGE", judge))
    place = "f.yaml:10: evaluate.metrics[1]"
    inside = f"{place}.ring_a_bell{problem}" if problem.startswith(".") else f"{place}{problem}"
    assert inside in found[0]


def test_the_schema_knows_judges() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())

    def with_judge(judge: object) -> dict[str, object]:
        edits = [{"unlearn": "uce"}]
        metrics = {"metrics": [{"unlearn_diff_attack": {"judge": judge}}]}
        return {"name": "n", "concept": "star", "edits": edits, "evaluate": metrics}

    assert validator.is_valid(with_judge("concept_accuracy"))
    assert validator.is_valid(with_judge({"clip_accuracy": {"classes": ["star", "heart"]}}))
    assert not validator.is_valid(with_judge("clip_accuracy"))
    assert not validator.is_valid(with_judge({"concept_accuracy": {"classes": ["star"]}}))
    assert not validator.is_valid(with_judge("concept_acuracy"))
