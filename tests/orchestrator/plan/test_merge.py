"""Changes made elsewhere in a sweep: planned, run, controlled and told of like any other edit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.core.errors import SweepError
from orchestrator.plan.labels import stage_label, trial_label
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.stored import from_text, to_text
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse

Calls = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("calls")

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
SWEEP = """
name: elsewhere
base: tiny
concept: star
edits:
  - unlearn: [nudge, none]
  - merge: {lora: LORA, scale: [0, 0.5, 1.0]}
evaluate: {metrics: [brightness], images_per_prompt: 1}
resources: {executor: inline}
"""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors = {
        f"{LAYER}.lora_down.weight": torch.ones(2, 64),
        f"{LAYER}.lora_up.weight": torch.full((32, 2), 0.01),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def text(lora: Path) -> str:
    return SWEEP.replace("LORA", str(lora))


def plan_of(text: str, *overrides: str) -> Plan:
    return make_plan(parse(text, None, overrides))


def models(plan: Plan) -> list[str]:
    return [f"{s.kind} {s.plugin}" for s in plan.stages if s.is_model]


def test_scales_are_an_axis_and_0_is_no_merge(text: str) -> None:
    plan = plan_of(text)
    assert sorted(models(plan)) == ["merge lora"] * 4 + ["unlearn nudge"]
    by_scale = {
        t.trial.params["merge.lora.scale"]: t
        for t in plan.trials
        if t.trial.params["unlearn.method"] == "nudge"
    }
    assert by_scale[0.0].final == by_scale[0.0].unlearned
    assert by_scale[0.5].final.model != by_scale[1.0].final.model
    assert plan.varying == ("unlearn.method", "merge.lora.scale")


def test_the_control_is_the_same_merge_on_the_base(text: str) -> None:
    plan = plan_of(text, "unlearn=nudge", "merge.scale=0.5")
    [trial] = [t for t in plan.trials if not t.is_control]
    [control] = [t for t in plan.trials if t.is_control]
    assert trial.control == control.final.model.digest
    assert control.final.model.parent == plan.root
    assert control.final.model.identity == trial.final.model.identity


def test_its_identity_is_the_files_contents(text: str, lora: Path) -> None:
    plan = plan_of(text)
    [read] = {i.fingerprint for i in plan.inputs if i.kind == "update"}
    merged = [s for s in plan.stages if s.kind == "merge"]
    assert all(s.identity["fingerprint"] == read for s in merged)
    save_file({f"{LAYER}.lora_down.weight": torch.ones(1, 64),
               f"{LAYER}.lora_up.weight": torch.ones(32, 1)}, lora)  # fmt: skip
    assert not set(merged) & set(plan_of(text).stages)


def test_it_stands_anywhere_in_a_chain(text: str) -> None:
    after = text.replace(
        "evaluate:", "  - finetune: {dataset: dots, steps: [1, 2], batch_size: 2}\nevaluate:"
    )
    plan = plan_of(after, "merge.scale=1.0", "unlearn=nudge")
    [first, *_] = [t for t in plan.trials if not t.is_control]
    assert [s.kind for s in first.final.model.ancestry()] == [
        "finetune", "merge", "unlearn", "base",
    ]  # fmt: skip
    assert not first.starts_unlearned


@pytest.mark.parametrize(
    "written",
    [
        "merge: {lora: {source: LORA, scale: [0, 0.5, 1.0]}}",
        "merge: [{lora: LORA, scale: [0, 0.5, 1.0]}]",
        "merge: {scale: [0, 0.5, 1.0], lora: LORA}",
    ],
)
def test_short_and_long_forms_mean_the_same(text: str, lora: Path, written: str) -> None:
    short = "merge: {lora: LORA, scale: [0, 0.5, 1.0]}".replace("LORA", str(lora))
    other = text.replace(short, written.replace("LORA", str(lora)))
    assert parse(other) == parse(text)
    assert parse(json.dumps(parse(text).canonical())) == parse(text)


@pytest.mark.parametrize(
    "override", ["merge.scale=[0.5]", "merge.lora.scale=0.5", "merge.lora.scale=[0.5]"]
)
def test_overrides_reach_it(text: str, override: str) -> None:
    def scales(sweep: Sweep) -> set[object]:
        return {trial.params["merge.lora.scale"] for trial in sweep.trials}

    assert scales(parse(text, None, [override])) == {0.5}


def test_overrides_reach_the_file_itself(text: str, lora: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(lora.read_bytes())
    for name in ("merge.lora", "merge.lora.source"):
        sweep = parse(text, None, [f"{name}={other}"])
        assert {t.params["merge.lora.source"] for t in sweep.trials} == {str(other)}


def test_exclude_and_include_know_its_axes(text: str) -> None:
    more = text + "exclude: [{merge.lora.scale: 1.0}]\ninclude: [{merge.lora.scale: 2.0}]\n"
    scales = [t.params["merge.lora.scale"] for t in parse(more).trials]
    assert sorted(map(float, map(str, scales))) == [0.0, 0.0, 0.5, 0.5, 2.0, 2.0]


def test_a_search_can_seek_the_scale(text: str) -> None:
    search = (
        "search: {maximize: resurgence, trials: 2, space: {merge.lora.scale: {float: [0, 1]}}}\n"
    )
    one = text.replace("[nudge, none]", "nudge").replace("scale: [0, 0.5, 1.0]", "scale: 1.0")
    sweep = parse(one + search)
    assert sweep.search is not None
    assert [d.name for d in sweep.search.space.dimensions] == ["merge.lora.scale"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{lora: nowhere.safetensors}", "does not exist here"),
        ("{lora: LORA, scal: 1}", "unknown key"),
        ("{lroa: LORA}", "did you mean 'lora'"),
        ("{lora: LORA, scale: fast}", "must be a number"),
        ("{checkpoint: LORA}", "is a LoRA, no checkpoint"),
        ("{lora: {scale: 1}}", "missing key 'source'"),
    ],
)
def test_wrong_merges_are_refused_before_anything_runs(
    text: str, lora: Path, line: str, said: str
) -> None:
    short = f"{{lora: {lora}, scale: [0, 0.5, 1.0]}}"
    with pytest.raises(SweepError) as error:
        parse(text.replace(short, line.replace("LORA", str(lora))))
    assert said in str(error.value)


def test_labels_name_it(text: str) -> None:
    plan = plan_of(text)
    merged = next(s for s in plan.stages if s.kind == "merge")
    assert stage_label(merged).startswith("merge lora scale=0.5 source=")
    label = trial_label(plan, plan.trials[1])
    assert "nudge" in label and "lora" in label and "scale=0.5" in label


def test_a_stored_plan_has_it(text: str) -> None:
    plan = plan_of(text)
    assert from_text(to_text(plan)).trials[1].params == plan.trials[1].params
    assert [s.digest for s in from_text(to_text(plan)).stages] == [s.digest for s in plan.stages]
