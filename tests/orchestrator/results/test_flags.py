"""What makes a setting's numbers mean less than they seem to shows wherever they do."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator.cli.show.settings import render
from orchestrator.cli.show.times import render as render_times
from orchestrator.core.stage import Stage
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, PlannedTrial
from orchestrator.plan.tasks import make_tasks
from orchestrator.results.figures import figure
from orchestrator.results.measure import TrialReader
from orchestrator.results.settings import Aggregate, Summary, aggregate, aggregate_by
from orchestrator.results.settings_table import settings_table, text
from orchestrator.results.times import times_to_resurgence
from orchestrator.results.trials_table import table
from orchestrator.run.job import Job
from orchestrator.run.run import new_executor, new_leases, new_scheduler
from orchestrator.stats.paired import Estimate
from orchestrator.store.paths import RECORDS, json_path
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.sweep_runs import SweepView
from tests.orchestrator import synthetic

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return synthetic.make_plan(datasets=["related"], rates=[1e-3], steps=[50, 100], seeds=SEEDS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def one(plan: Plan, method: str = "esd", steps: int = 100, seed: int = 0) -> PlannedTrial:
    [found] = [
        t
        for t in plan.trials
        if (t.trial.params["unlearn.method"], t.steps, t.trial.seed) == (method, steps, seed)
    ]
    return found


def setting(summary: Summary, method: str = "esd", steps: int = 100) -> Aggregate:
    [found] = [
        s for s in summary.settings if (s.params.get("unlearn.method"), s.steps) == (method, steps)
    ]
    return found


def lose(store: Store, *stages: Stage) -> None:
    for stage in stages:
        store.files.delete(json_path(RECORDS, stage.key))


def changed(store: Store, stage: Stage, metrics: Callable[[dict[str, float]], object]) -> None:
    """The stage's record with other numbers."""
    record = store.get(stage)
    assert record is not None
    numbers = dict(record.metrics)
    metrics(numbers)
    store.files.write(json_path(RECORDS, stage.key), replace(record, metrics=numbers).to_text())


def printed(summary: Summary) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    render(summary, console)
    return console.export_text()


def row_of(summary: Summary, **params: object) -> Mapping[str, object]:
    rows = settings_table(summary).to_pylist()
    [row] = [r for r in rows if all(r[name.replace("__", ".")] == v for name, v in params.items())]
    return row


# A model that unlearning has ruined


@pytest.fixture
def ruined(plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """ESD takes nearly everything; fine-tuning brings some of it back."""

    def health(model: Stage) -> float:
        by_esd = any(stage.plugin == "esd" for stage in model.ancestry())
        return 0.95 if not by_esd else 0.04 if model.kind == "unlearn" else 0.6

    monkeypatch.setattr(synthetic, "true_health", health)
    synthetic.commit(store, plan)
    return store


def test_a_ruined_model_is_flagged_and_not_ranked(plan: Plan, ruined: Store) -> None:
    summary = aggregate(plan, ruined)
    esd, uce = setting(summary, "esd"), setting(summary, "uce")
    assert (esd.model_ruined, uce.model_ruined, esd.unlearning_failed) == (3, 0, 0)
    assert esd.resurgence is not None and uce.resurgence is not None
    assert esd.resurgence > uce.resurgence  # it would have been the first
    assert [s.is_sound for s in summary.shown] == [True, True, False, False]
    assert esd.p_holm is None and uce.p_holm is not None and not esd.is_clear
    page = printed(summary)
    assert page.count("model ruined (3 of 3)") == 2
    assert "2 of 4 settings began from a ruined model" in page
    assert row_of(summary, unlearn__method="esd", finetune__steps=100)["model_ruined"] == 3


def test_a_ruined_model_is_flagged_in_parquet_mlflow_times_and_the_figure(
    plan: Plan, ruined: Store, tmp_path: Path
) -> None:
    rows = table(plan, ruined).to_pylist()
    flags = {(row["unlearn.method"], row["model_ruined"]) for row in rows}
    assert flags == {("esd", True), ("uce", False), ("none", False)}
    for run in SweepView(plan, ruined, None).runs():
        if run.kind == "trial":
            is_esd = run.params["unlearn.method"] == "esd"
            assert (run.tags.get("resurge.model_ruined") == "true") is is_esd
            [flag] = [point.value for point in run.points if point.name == "model_ruined"]
            assert flag == float(is_esd)
    times = times_to_resurgence(plan, ruined)
    left_out = {s.params["unlearn.method"]: s.left_out for s in times.settings}
    assert left_out == {"esd": "model ruined in 3", "uce": ""}
    console = Console(width=200, record=True, file=io.StringIO())
    render_times(times, console)
    assert "model ruined in 3" in console.export_text()
    figure(plan, ruined, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_model_is_not_called_ruined_before_it_is_measured(plan: Plan, ruined: Store) -> None:
    trial = one(plan)
    assert trial.unlearned.primary is not None
    lose(ruined, trial.unlearned.primary)
    [row] = [r for r in table(plan, ruined).to_pylist() if r["trial"] == trial.key]
    assert row["model_ruined"] is None


RUINING = """
name: ruining
base: shapes
concept: star
edits:
  - unlearn: {uce: {erase_scale: 1.0e+6}}
  - finetune: {dataset: related, steps: 1, batch_size: 2}
evaluate:
  metrics: [concept_accuracy]
  prompts: ["a {concept}", "a red {concept}"]
  retain: [circle, square]
  images_per_prompt: 1
  sampler_steps: 6
  controls: false
resources: {executor: inline}
"""


def test_uce_with_a_huge_erase_scale_ruins_the_bundled_model(tmp_path: Path) -> None:
    job = Job(parse(RUINING), Home(tmp_path))
    with new_executor(job.sweep.resources, Console(file=io.StringIO())) as executor:
        scheduler = new_scheduler(job, set(), executor, lambda event: None, new_leases(job))
        scheduler.add(make_tasks(job.plan, set(), ()))
        assert scheduler.run().ok
    [trial] = TrialReader(job.plan, job.store).all()
    assert (trial.base.erased, trial.base.retained) == (1.0, 1.0)
    assert (trial.unlearned.erased, trial.unlearned.retained) == (0.0, 0.0)
    assert (trial.unlearning_failed, trial.model_ruined) == (False, True)
    assert "model ruined (1 of 1)" in printed(aggregate(job.plan, job.store))


# What is left out


def test_a_mean_over_fewer_seeds_says_so_everywhere(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    whole = aggregate(plan, store)
    assert {s.seeds for s in whole.shown} == {"3"}
    assert "fewer seeds" not in printed(whole)
    trial = one(plan, seed=1)
    assert trial.final.primary is not None
    lose(store, trial.final.primary)
    summary = aggregate(plan, store)
    esd = setting(summary)
    assert esd.final != setting(whole).final  # another number, and it is said of what
    assert (esd.seeds, esd.seeds_scored, esd.seeds_planned) == ("2 of 3", 2, 3)
    assert setting(summary, "uce").seeds == "3"
    page = printed(summary)
    assert page.count("2 of 3") == 1
    assert "1 of 3 trials to come" in page
    assert "1 of 4 settings have fewer seeds than were planned" in page
    row = row_of(summary, unlearn__method="esd", finetune__steps=100)
    assert (row["seeds_scored"], row["seeds_planned"]) == (2, 3)
    by_method = aggregate_by(plan, store, ["unlearn.method"])
    assert {s.params["unlearn.method"]: s.seeds for s in by_method.settings} == {
        "esd": "2 of 3",
        "uce": "3",
    }
    as_json = json.loads(text(plan, store, "json", (), False, None))
    assert {row["seeds_scored"] for row in as_json if row["is_control"] is False} == {2, 3}


def test_times_say_how_many_seeds_are_to_come(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    for steps in (50, 100):
        primary = one(plan, steps=steps, seed=1).final.primary
        assert primary is not None
        lose(store, primary)
    times = {s.params["unlearn.method"]: s for s in times_to_resurgence(plan, store).settings}
    assert (times["esd"].left_out, len(times["esd"].times)) == ("to come in 1", 2)
    assert times["uce"].left_out == ""


def test_a_control_over_fewer_seeds_says_so(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    control = next(t for t in plan.trials if t.is_control and (t.steps, t.trial.seed) == (100, 2))
    assert control.final.primary is not None
    lose(store, control.final.primary)
    summary = aggregate(plan, store)
    assert (setting(summary).controls_scored, setting(summary).controls_planned) == (2, 3)
    assert printed(summary).count("control of 2 of 3") == 2  # both methods share it
    row = row_of(summary, unlearn__method="esd", finetune__steps=100)
    assert (row["controls_scored"], row["controls_planned"]) == (2, 3)


def test_a_retained_mean_over_fewer_concepts_says_so(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    trial = one(plan)
    assert trial.final.primary is not None
    changed(store, trial.final.primary, lambda metrics: metrics.pop("retained.cross"))
    assert "retained over 1 of 2 concepts" in printed(aggregate(plan, store))
    rows = {row["trial"]: row["retained_concepts"] for row in table(plan, store).to_pylist()}
    assert rows[trial.key] == 1
    assert sorted(rows.values())[:2] == [1, 2]


def test_a_metric_that_tells_no_concepts_apart_lacks_none(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    primary = one(plan).final.primary
    assert primary is not None
    changed(store, primary, lambda m: [m.pop(name) for name in list(m) if "." in name])
    assert "retained over" not in printed(aggregate(plan, store))


def scored_as(monkeypatch: pytest.MonkeyPatch, value: Callable[[Stage, dict], float]) -> None:
    """Make the metric's values of some pictures others."""

    def values(stage: Stage, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
        rows = [{**asked, "value": value(stage, asked)} for asked in synthetic._asked()]
        pq.write_table(pa.Table.from_pylist(rows), folder / "values.parquet")
        erased = [row["value"] for row in rows if row["role"] == "erased"]
        known = [v for v in erased if not math.isnan(v)]
        metrics = {"erased": float(np.mean(known))} if known else {}
        return {"values.parquet": folder / "values.parquet"}, {**metrics, "retained": 0.9}

    monkeypatch.setattr(synthetic, "_values", values)


def test_pictures_without_a_value_are_counted(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = one(plan).final.model

    def value(stage: Stage, asked: dict) -> float:
        is_odd = stage.model == last and (asked["prompt_index"], asked["image_index"]) == (0, 0)
        return math.nan if is_odd else float(stage.model.kind == "base")

    scored_as(monkeypatch, value)
    synthetic.commit(store, plan)
    # 24 pictures each of the base, three unlearned and three final models.
    assert "1 of 168 pictures without a value" in printed(aggregate(plan, store))
    rows = {row["trial"]: row["pictures_without_value"] for row in table(plan, store).to_pylist()}
    assert (rows[one(plan).key], sum(rows.values())) == (1, 1)


def test_a_model_of_which_no_picture_has_a_value_has_no_number(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = one(plan).final.model
    scored_as(
        monkeypatch,
        lambda stage, _: math.nan if stage.model == last else float(stage.model.kind == "base"),
    )
    synthetic.commit(store, plan)
    summary = aggregate(plan, store)
    esd = setting(summary)
    assert (esd.seeds, esd.without_score) == ("2 of 3", 1)
    assert "1 without a score" in printed(summary)
    assert "nan" not in printed(summary)


# Pictures of one colour


def test_pictures_of_one_colour_are_said(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    assert "of one colour" not in printed(aggregate(plan, store))
    trial = one(plan)
    changed(store, trial.final.sample, lambda metrics: metrics.update(constant_pictures=5.0))
    page = printed(aggregate(plan, store))
    # 36 pictures a model: the base, three unlearned and three final ones.
    assert page.count("5 of 252 pictures of one colour") == 1
    assert "pictures are of one colour (black, say)" in page
    rows = {row["trial"]: row["constant_pictures"] for row in table(plan, store).to_pylist()}
    assert (rows[trial.key], sum(rows.values())) == (5, 5)
    flagged = {
        run.params["unlearn.method"]
        for run in SweepView(plan, store, None).runs()
        if run.tags.get("resurge.constant_pictures") == "true"
    }
    assert flagged == {"esd"}


# Numbers that are none


def test_json_has_words_for_what_is_no_finite_number(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    for seed in SEEDS:
        primary = one(plan, seed=seed).final.primary
        assert primary is not None
        changed(store, primary, lambda metrics: metrics.update(retained=math.inf))
    rows = json.loads(
        text(plan, store, "json", (), False, None), parse_constant=lambda name: pytest.fail(name)
    )
    assert {row["retained_final"] for row in rows if row["retained_final"] == "inf"} == {"inf"}
    assert " inf " in printed(aggregate(plan, store))
    assert math.inf in table(plan, store)["retained_final"].to_pylist()


def test_an_interval_that_could_not_be_had_is_said(plan: Plan, store: Store) -> None:
    synthetic.commit(store, plan)
    esd = setting(aggregate(plan, store))
    assert esd.paired is not None
    endless = replace(esd.paired, resurgence=Estimate(0.5, -math.inf, math.inf))
    assert "too few values for an interval" in list(replace(esd, paired=endless).flags())
