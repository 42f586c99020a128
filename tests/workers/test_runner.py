"""Runner: stages are committed one at a time, and whatever was lost is made again the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants

from orchestrator.core.errors import Stopped
from orchestrator.core.registry import find
from orchestrator.core.settings import Settings
from orchestrator.core.stage import Stage
from orchestrator.executors.base import ExecutorSettings
from orchestrator.executors.inline import Inline
from orchestrator.messages import Event, StageCommitted
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.schedule.scheduler import Outcome, Scheduler
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from workers.editing.edit_file import load_edits
from workers.editing.pipeline import WarmPipeline
from workers.training import checkpoints
from workers.training.checkpoints import load_tensors

Calls = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("calls")

BRIEF = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "evaluate.controls=false")


def run(
    plan: Plan,
    store: Store,
    keep: tuple[str, ...] = ("unlearned",),
    listener: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    done = {stage.key for stage in plan.stages if store.get(stage)}
    with Inline(ExecutorSettings()) as executor:
        tasks = make_tasks(plan, done, keep)
        return Scheduler(tasks, done, executor, store, Path(store.root) / "logs", listener).run()


def plan_of(small: str, *overrides: str) -> Plan:
    return make_plan(parse(small, None, overrides))


def images(store: Store, plan: Plan) -> dict[str, list[bytes]]:
    found = {}
    for stage in plan.stages:
        if stage.kind == "sample" and (record := store.get(stage)):
            with store.object(record, "images.parquet") as path:
                found[stage.key] = pq.read_table(path)["png"].to_pylist()
    return found


def test_a_sweep_runs_and_a_second_time_runs_nothing(
    small: str, tmp_path: Path, calls: Calls
) -> None:
    plan, store = plan_of(small), Store(tmp_path)
    outcome = run(plan, store)
    assert outcome.ok, outcome.failed
    assert outcome.ran == {stage.key for stage in plan.stages}
    first = calls()
    assert first.count("unlearn 0.01") == 3
    assert first.count("load") == 1
    assert first.count("brightness") == 28
    assert run(plan, store).ran == set()
    assert calls() == []


@pytest.mark.parametrize(
    ("override", "unlearnings", "new_models"),
    [
        ("finetune.steps=[0, 1, 2, 3]", 0, 1),
        ("seeds=2", 0, 2),
        ("unlearn=[nudge, {nudge: {amount: 0.5}}]", 1, 3),
    ],
)
def test_an_addition_runs_only_what_is_new(
    small: str, tmp_path: Path, calls: Calls, override: str, unlearnings: int, new_models: int
) -> None:
    store = Store(tmp_path)
    run(plan_of(small, *BRIEF), store)
    calls()
    later = plan_of(small, *BRIEF, override)
    outcome = run(later, store)
    assert outcome.ran == {s.key for s in later.stages} - {
        s.key for s in plan_of(small, *BRIEF).stages
    }
    noted = calls()
    assert sum(line.startswith("unlearn") for line in noted) == unlearnings
    assert noted.count("brightness") == new_models


def test_a_new_metric_scores_the_stored_images(small: str, tmp_path: Path, calls: Calls) -> None:
    store = Store(tmp_path)
    run(plan_of(small, *BRIEF), store)
    calls()
    renamed = small.replace("[brightness]", "[brightness, darkness]")
    outcome = run(plan_of(renamed, *BRIEF), store)
    assert len(outcome.ran) == 4
    assert set(calls()) == {"darkness"}  # no model was loaded, no image made


class Killed(Stopped):
    """Stands for a signal: nothing that is running may tidy up."""


def killed_after(stage: Stage) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, StageCommitted) and event.key == stage.key:
            raise Killed

    return listener


BOOTH = (
    "finetune.caption=a red star",
    "finetune.prior_weight=1.0",
    "finetune.prior_prompt=a star",
    "finetune.prior_images=2",
)


INVERSION = (
    "finetune.adapter=textual_inversion",
    "finetune.placeholder=<mug>",
    "finetune.initializer=circle",
    "finetune.caption=a <mug>",
    'evaluate.prompts=["a {concept} <mug>"]',
)


@pytest.mark.parametrize(
    "how",
    [(), ("finetune.adapter=lora",), BOOTH, INVERSION, (*INVERSION, "finetune.trained_on=base")],
    ids=["full", "lora", "dreambooth", "textual inversion", "textual inversion elsewhere"],
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_images(
    small: str, tmp_path: Path, how: tuple[str, ...]
) -> None:
    plan = plan_of(small, *BRIEF, *how, "unlearn=[nudge, shake]")
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    run(plan, whole)
    # What a kill leaves: the first step count's model is recorded, its images are not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.runner.sample", interrupt_after(4))
        with pytest.raises(Killed):
            run(plan, cut)
    before = cut.keys()
    assert 0 < len(before) < len(plan.stages)
    outcome = run(plan, cut)
    assert outcome.ran.isdisjoint(before)
    assert images(cut, plan) == images(whole, plan)


def test_a_learned_token_stands_beside_what_comes_after(small: str, tmp_path: Path) -> None:
    """Trained on with it in the captions, unlearned again, and read back from the store."""
    text = small.replace(
        "evaluate:", "  - finetune: {dataset: dots}\n  - unlearn: shake\nevaluate:"
    )
    more = ("finetune.steps=2", "finetune_2.steps=1", "finetune_2.caption=my <mug>")
    plan, store = plan_of(text, *BRIEF, *INVERSION, *more), Store(tmp_path)
    outcome = run(plan, store, keep=("unlearned", "finetuned"))
    assert outcome.ok, outcome.failed
    kinds = []
    for stage in next(iter(plan.trials)).final.model.lineage:
        if stage.is_model:
            with store.object(store.get(stage), "weights.safetensors") as path:
                kinds.append([edit.kind for edit in load_edits(path)])
    both = ["weights", "learned_token"]
    assert kinds == [["weights"], both, both, ["weights", *both[1:], "weights"]]
    last = plan_of(text, *BRIEF, *INVERSION, *more, "evaluate.noise_seed=1")
    outcome = run(last, store)
    assert outcome.ok, outcome.failed
    assert {s.kind for s in last.stages if s.key in outcome.ran} == {"sample", "score"}


def interrupt_after(count: int) -> Callable[..., object]:
    from workers.diffusion.sampling import sample

    made = []

    def sampling(*args: object) -> object:
        made.append(1)
        if len(made) > count:
            raise Killed
        return sample(*args)

    return sampling


def test_weights_that_were_not_kept_are_computed_again(small: str, tmp_path: Path) -> None:
    """Other images of a fine-tuned model whose weights are gone are those of the same model."""
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    run(plan_of(small, *BRIEF), store)
    more = plan_of(small, *BRIEF, "evaluate.images_per_prompt=2")
    run(more, store)
    run(more, other)
    assert images(store, more) == images(other, more)


def test_kept_weights_are_the_changed_ones_and_give_the_same_model(
    small: str, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    lora = ("finetune.adapter=lora", "finetune.steps=[1, 2]")
    plan = plan_of(small, *BRIEF, *lora)
    run(plan, store, keep=("unlearned", "finetuned"))
    unlearned = next(s for s in plan.stages if s.kind == "unlearn")
    record = store.get(unlearned)
    assert record is not None
    with store.object(record, "weights.safetensors") as path:
        assert all("attn2.to_v" in name for name in load_tensors(path))
    more = plan_of(small, *BRIEF, *lora, "evaluate.images_per_prompt=2")
    run(more, store)
    other = Store(tmp_path / "other")
    run(more, other)
    assert images(store, more) == images(other, more)


def test_checkpoints_go_when_the_trajectory_is_complete(small: str, tmp_path: Path) -> None:
    plan = plan_of(small, *BRIEF)
    (trajectory,) = {s.trajectory for s in plan.stages} - {None}
    store = Store(tmp_path / "gone")
    run(plan, store)
    assert store.checkpoints(str(trajectory)) == []
    kept = Store(tmp_path / "kept")
    run(plan, kept, keep=("checkpoints",))
    assert kept.checkpoints(str(trajectory)) == [2]


@pytest.mark.parametrize(
    ("saving", "keep", "expected"),
    [(math.inf, (), [1, 2, 3]), (0.0, (), [1]), (0.0, ("checkpoints",), [1, 2, 3])],
)
def test_a_state_that_takes_long_to_write_is_written_only_if_it_must(
    small: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saving: float,
    keep: tuple[str, ...],
    expected: list[int],
) -> None:
    saved: list[int] = []

    def keep_state(store: Store, digest: str, step: int, *state: Any) -> None:
        saved.append(step)
        checkpoints.keep_state(store, digest, step, *state)

    monkeypatch.setattr("workers.model.keep_state", keep_state)
    monkeypatch.setattr("workers.model.SAVING", saving)
    assert run(plan_of(small, *BRIEF, "finetune.steps=[1, 2, 3]"), Store(tmp_path), keep).ok
    assert saved == expected


def test_a_failed_stage_takes_only_its_descendants(small: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_of(small, *BRIEF, "unlearn=[nudge, {nudge: {fail: true}}]")
    outcome = run(plan, store)
    [(key, failed)] = outcome.failed.items()
    broken = next(s for s in plan.stages if s.settings["settings"].get("fail"))
    assert key == broken.key
    assert "told to fail" in failed.message
    assert "Traceback" in Path(failed.log_path).read_text()
    below = {s.key for s in plan.stages if broken in s.ancestry()} - {broken.key}
    assert outcome.skipped == below
    assert outcome.ran == {s.key for s in plan.stages} - below - {broken.key}
    assert set(store.failures()) == {broken.key}


def test_a_record_says_how_it_came_to_be(small: str, tmp_path: Path) -> None:
    store, plan = Store(tmp_path), plan_of(small, *BRIEF)
    run(plan, store)
    record = store.get(next(s for s in plan.stages if s.steps == 2))
    assert record is not None
    assert record.settings["settings"]["batch_size"] == 2
    assert record.settings["dataset"]["settings"] == {"level": 128}
    assert record.provenance["versions"]["torch"]
    assert record.seconds > 0
    assert record.metrics["loss"] > 0
    with store.object(record, "losses.parquet") as path:
        assert pq.read_table(path)["step"].to_pylist() == [1, 2]


def test_longer_chains_run(small: str, tmp_path: Path) -> None:
    chain = small.replace(
        "edits:\n", "edits:\n  - finetune: {dataset: dots, steps: 1, batch_size: 2}\n"
    )
    plan = make_plan(parse(chain, None, ["unlearn=nudge", "seeds=1"]))
    assert run(plan, Store(tmp_path)).ok


def metrics_of(plan: Plan, store: Store, metric: str, steps: int) -> list[dict[str, float]]:
    """Of every score of models with so many steps."""
    stages = [s for s in plan.stages if s.plugin == metric and s.model.steps == steps]
    records = [store.get(stage) for stage in stages]
    return [dict(record.metrics) for record in records if record]


def test_a_metric_can_compare_with_the_bases_pictures(small: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = plan_of(small, *BRIEF, "evaluate.metrics=[drift, brightness]")
    assert run(plan, store).ok
    [base] = [s for s in plan.stages if s.plugin == "drift" and s.model.kind == "base"]
    assert store.get(base).metrics == {"mean": 0.0}  # type: ignore[union-attr]
    [tuned] = metrics_of(plan, store, "drift", 2)
    assert abs(tuned["mean"]) > 1e-4
    assert measured_by(plan) == {"brightness"}  # single pictures have no drift


def measured_by(plan: Plan) -> set[str]:
    stages = [trial.final.primary for trial in plan.trials]
    return {stage.plugin for stage in stages if stage}


def test_a_metric_can_put_models_to_work(small: str, tmp_path: Path, calls: Calls) -> None:
    store = Store(tmp_path)
    plan = plan_of(small, *BRIEF, "evaluate.metrics=[brightness, movement]")
    assert run(plan, store).ok
    assert not metrics_of(plan, store, "movement", 0)  # nothing was fine-tuned
    found = metrics_of(plan, store, "movement", 2)
    assert found
    assert all(metrics["moved"] > 0 and metrics["examples"] == 4 for metrics in found)
    assert "movement star" in calls()


def test_a_metric_that_is_added_later_draws_no_picture(
    small: str, tmp_path: Path, calls: Calls
) -> None:
    store = Store(tmp_path)
    run(plan_of(small, *BRIEF), store)
    calls()
    added = plan_of(small, *BRIEF, "evaluate.metrics=[brightness, darkness, drift]")
    outcome = run(added, store)
    assert outcome.ok
    assert {stage.plugin for stage in added.stages if stage.key in outcome.ran} == {
        "darkness",
        "drift",
    }
    assert set(calls()) <= {"darkness", "drift"}


MERGED = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "finetune.steps=[0,1,2]")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_fine_tune_of_the_base_is_added_to_the_unlearned_model(
    small: str, tmp_path: Path, adapter: str
) -> None:
    store = Store(tmp_path)
    plan = plan_of(small, *MERGED, "finetune.trained_on=base", f"finetune.adapter={adapter}")
    assert run(plan, store, keep=("unlearned", "finetuned")).ok
    merges = [stage for stage in plan.stages if stage.kind == "merge"]
    assert len(merges) == 2
    base = WarmPipeline(find("base", "tiny")(Settings()), "cpu").base_state()
    for stage in merges:
        assert stage.parent is not None
        merged, unlearned, donor = (
            base | weights(store, s) for s in (stage, stage.parent, stage.inputs["donor"])
        )
        assert any(not donor[name].equal(base[name]) for name in base)
        for name in base:
            assert torch.allclose(merged[name] - unlearned[name], donor[name] - base[name])


def weights(store: Store, stage: Stage) -> dict[str, torch.Tensor]:
    record = store.get(stage)
    assert record is not None
    with store.object(record, "weights.safetensors") as path:
        return {n: v for edit in load_edits(path) for n, v in edit.values.items()}  # type: ignore[attr-defined]


def test_a_merge_costs_no_training_beyond_its_control(small: str) -> None:
    both = plan_of(small, *MERGED, "finetune.trained_on=[model,base]")
    trained = {stage.trajectory for stage in both.stages if stage.kind == "finetune"}
    assert len(trained) == 2  # of the unlearned model, and of the base: the control and the donor
    controls = [trial.final.model for trial in both.trials if trial.is_control]
    donors = [stage.inputs["donor"] for stage in both.stages if stage.kind == "merge"]
    assert set(donors) <= set(controls)


def test_a_merge_survives_a_donor_whose_weights_are_gone(small: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    base_only = plan_of(small, *MERGED, "unlearn=none", "finetune.steps=[0,2]")
    assert run(base_only, store, keep=()).ok
    plan = plan_of(small, *MERGED, "finetune.trained_on=base", "finetune.steps=[0,2]")
    outcome = run(plan, store)
    assert outcome.ok
    assert not any(s.kind == "finetune" and s.key in outcome.ran for s in plan.stages)
    whole = Store(tmp_path / "whole")
    assert run(plan, whole).ok
    assert images(store, plan) == images(whole, plan)


SET = ("concept={name: pair, concepts: [star, heart]}", "seeds=1", "finetune.steps=[0,1]")
BRIEF_SPM = "{spm: {iterations: 1, batch_size: 1, sampler_steps: 2}}"


def of_orders(small: str, method: str) -> Plan:
    unlearn = f"unlearn={{method: {method}, order: [independent, continual, simultaneous]}}"
    return plan_of(small, unlearn, *SET, "finetune.learning_rate=1e-3")


def test_what_each_concepts_unlearning_changed_is_added(small: str, tmp_path: Path) -> None:
    store, plan = Store(tmp_path), of_orders(small, "uce")
    assert run(plan, store).ok
    [merge] = [stage for stage in plan.stages if stage.kind == "merge"]
    base = WarmPipeline(find("base", "tiny")(Settings()), "cpu").base_state()
    assert merge.parent is not None
    merged, first, second = (
        base | weights(store, s) for s in (merge, merge.parent, merge.inputs["donor"])
    )
    for name in base:
        added = first[name] + second[name] - 2 * base[name]
        assert torch.allclose(merged[name] - base[name], added, atol=1e-6)


def test_adapters_that_stand_beside_the_model_are_stacked(small: str, tmp_path: Path) -> None:
    store, plan = Store(tmp_path), of_orders(small, BRIEF_SPM)
    assert run(plan, store).ok
    found = {}
    for trial in plan.trials:
        if trial.steps == 0 and not trial.is_control:
            record = store.get(trial.unlearned.model)
            assert record is not None
            with store.object(record, "weights.safetensors") as path:
                edits = load_edits(path)
            found[trial.params["unlearn.order"]] = [e.config()["concept"] for e in edits]
    assert list(found.values()) == [["star", "heart"]] * 3


def test_what_a_judge_does_not_know_is_not_drawn(
    small: str, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its classes were out of reach when the sweep was planned, and are there on the worker."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    metrics = ["brightness", {"classifier": {"model": "owner/name", "revision": commit}}]
    plan = plan_of(small, *BRIEF, f"evaluate.metrics={json.dumps(metrics)}")
    folder = tmp_path / "cache" / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "stag", "1": "circle"}}))
    outcome = run(plan, Store(tmp_path / "store"))
    samples = {stage.key for stage in plan.stages if stage.kind == "sample"}
    assert outcome.failed.keys() == samples
    said = {failure.message for failure in outcome.failed.values()}
    assert len(said) == 1 and "no class for 'star' (near: stag)" in said.pop()
    assert calls().count("brightness") == 0
