import io
import json
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator.cli.show.results import choose_format, show_settings
from orchestrator.cli.show.settings import render
from orchestrator.core.artifacts import Failure
from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import ResurgeError, StoreError
from orchestrator.results import trials_table as results
from orchestrator.results.measure import TrialReader
from orchestrator.results.settings import aggregate, aggregate_by
from orchestrator.results.settings_table import settings_table, text
from orchestrator.stats.paired import holm
from orchestrator.store.store import Store
from tests.orchestrator import synthetic

DOCS = Path(__file__).parents[3] / "docs" / "results.md"


@pytest.fixture(scope="module")
def plan():
    return synthetic.make_plan()


@pytest.fixture(scope="module")
def store(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    synthetic.commit(store, plan)
    return store


@pytest.fixture(scope="module")
def summary(plan, store):
    return aggregate(plan, store)


@pytest.fixture(scope="module")
def rows(plan, store):
    return results.table(plan, store).to_pylist()


def row_of(rows, **params):
    (row,) = [row for row in rows if all(row[name] == value for name, value in params.items())]
    return row


ESD = {"unlearn.method": "esd", "finetune.dataset": "related", "finetune.learning_rate": 1e-3}


def test_a_row_for_every_trial_controls_included(plan, rows):
    assert len(rows) == len(plan.trials) == 72
    assert sum(row["is_control"] for row in rows) == 24
    assert {row["status"] for row in rows} == {"done"}


def test_axes_are_typed_columns(plan, store):
    schema = results.table(plan, store).schema
    assert schema.field("finetune.steps").type == pa.int64()
    assert schema.field("finetune.learning_rate").type == pa.float64()
    assert schema.field("unlearn.method").type == pa.string()
    assert schema.field("is_control").type == pa.bool_()


def test_an_axis_that_a_trial_lacks_is_null(rows):
    assert {row["unlearn.esd.group"] for row in rows if row["unlearn.method"] == "uce"} == {None}


def test_numbers_of_a_trial(rows):
    row = row_of(rows, **{**ESD, "finetune.steps": 100, "seed": 0})
    assert row["base_score"] > 0.9
    assert row["resurgence"] == pytest.approx(row["final_score"] - row["unlearned_score"])
    assert row["recovery"] == pytest.approx(
        row["resurgence"] / (row["base_score"] - row["unlearned_score"])
    )
    assert 0 < row["resurgence_low"] < row["resurgence"] < row["resurgence_high"]
    assert row["weight_distance.l2"] == 11
    assert "concept_accuracy.retained.circle" in row
    assert row["unlearning_failed"] is False


def test_the_control_is_the_same_fine_tuning_of_the_base(rows):
    params = {"finetune.dataset": "related", "finetune.learning_rate": 1e-3}
    params |= {"finetune.steps": 50, "seed": 1}
    trial = row_of(rows, **params, **{"unlearn.method": "esd"})
    control = row_of(rows, **params, **{"unlearn.method": "none"})
    assert trial["control_score"] == control["final_score"]
    assert control["control_score"] is None


def test_no_steps_no_resurgence(rows):
    for row in rows:
        if row["finetune.steps"] == 0:
            assert (row["resurgence"], row["resurgence_low"], row["resurgence_high"]) == (0, 0, 0)


def test_an_unfinished_sweep_has_rows_with_nulls(plan, tmp_path):
    store = Store(tmp_path)
    trial = next(t for t in plan.trials if t.trial.params["finetune.steps"] == 50)
    synthetic.commit(store, plan, {s.digest for s in trial.unlearned.stages()})
    store.put_failure(trial.final.model, Failure("out of memory", None))
    rows = results.table(plan, store).to_pylist()
    row = row_of(rows, trial=trial.key)
    assert (row["status"], row["final_score"], row["resurgence"]) == ("failed", None, None)
    assert row["unlearned_score"] is not None
    assert {row["status"] for row in rows} == {"failed", "incomplete"}


def test_an_empty_store_has_rows_too(plan, tmp_path):
    table = results.table(plan, Store(tmp_path))
    assert table.num_rows == 72
    assert table["resurgence"].null_count == 72


def test_parquet_is_read_by_pandas_duckdb_and_polars(plan, store, tmp_path):
    path = tmp_path / "out" / "results.parquet"
    results.write(results.table(plan, store), path)
    assert pd.read_parquet(path)["finetune.steps"].max() == 100
    assert pl.read_parquet(path).filter(pl.col("is_control")).height == 24
    query = f"""select max(resurgence) from '{path}' where "unlearn.method" = 'esd'"""
    [(best,)] = duckdb.sql(query).fetchall()
    assert best > 0.3
    assert [p.name for p in path.parent.iterdir()] == ["results.parquet"]


def test_parquet_says_what_its_columns_are(plan, store, tmp_path):
    results.write(results.table(plan, store), tmp_path / "results.parquet")
    schema = pq.read_schema(tmp_path / "results.parquet")
    assert schema.metadata[b"resurge.sweep"] == b"quickstart"
    assert all(field.metadata[b"description"] for field in schema)


def test_every_fixed_column_is_documented():
    text = DOCS.read_text()
    for column in (*results.NAMES, *results.NUMBERS, *results.ORIGINS):
        assert f"`{column.name}`" in text, column.name


def test_scores_of_different_images_are_refused(plan, tmp_path):
    """A metric that forgets the order of the images must not be paired by accident."""
    store = Store(tmp_path)
    trial = plan.trials[1]
    score = trial.final.primary
    synthetic.commit(store, plan, {s.digest for s in trial.stages() if s != score})
    with store.scratch() as folder:
        files, metrics = synthetic.content(score, folder)
        table = pq.read_table(files["values.parquet"])
        image = pa.array(np.asarray(table["image_index"]) + 1)
        at = table.schema.get_field_index("image_index")
        pq.write_table(table.set_column(at, "image_index", image), files["values.parquet"])
        store.commit(score, files, metrics, "2026-01-01T00:00:00+00:00", 1.0, {})
    with pytest.raises(StoreError, match="different images"):
        TrialReader(plan, store).measure(trial)


def test_seeds_are_replicates_of_a_setting(summary):
    assert len(summary.settings) == 36
    best = summary.settings[0]
    assert (best.params["unlearn.method"], best.params["finetune.dataset"]) == ("esd", "related")
    assert best.steps == 100
    assert best.resurgence == pytest.approx(np.mean(best.resurgence_by_seed))
    assert best.paired.resurgence.low > 0
    assert (best.planned, best.scored) == (2, 2)
    assert best.control > 0.8


def test_settings_are_ranked_controls_last(summary):
    settings = summary.settings
    ranked = [s.resurgence for s in settings if not s.is_control]
    assert ranked == sorted(ranked, reverse=True)
    assert all(s.is_control for s in settings[len(ranked) :])


def test_one_model_shared_by_all_seeds_is_one_replicate(summary):
    shared = next(
        s for s in summary.settings if s.params["unlearn.method"] == "uce" and s.steps == 0
    )
    assert (shared.scored, len(shared.resurgence_by_seed)) == (2, 1)


def test_failed_unlearning_is_flagged_and_ranks_behind(tmp_path, monkeypatch):
    plan = synthetic.make_plan()
    true = synthetic.true_accuracy

    def barely_unlearned(model):
        by_esd = any(stage.plugin == "esd" for stage in model.ancestry())
        return max(true(model), 0.8) if by_esd else true(model)

    monkeypatch.setattr(synthetic, "true_accuracy", barely_unlearned)
    store = Store(tmp_path)
    synthetic.commit(store, plan)
    summary = aggregate(plan, store)
    settings = [s for s in summary.settings if not s.is_control]
    flags = [s.unlearning_failed for s in settings]
    assert flags == sorted(flags)
    assert {s.params["unlearn.method"] for s in settings if s.unlearning_failed} == {"esd"}
    assert "unlearning failed (2 of 2)" in printed(summary)


def printed(summary, width=100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    render(summary, console)
    return console.export_text()


def test_the_table_shows_the_axes_that_vary(summary):
    text = printed(summary)
    for word in ("method", "dataset", "lr", "steps", "1e-3", "esd"):
        assert word in text
    assert "adapter" not in text
    assert "concept_accuracy v1 · guidance 3 · DDIM 20 steps" in text
    assert "6 prompts × 4 images × 2 seeds" in text
    assert sum(" esd " in f" {line} " for line in text.splitlines()) == 8, "0 steps are left out"


def test_a_narrow_console_cuts_no_number(summary):
    assert "…" not in printed(summary, width=40)


def test_the_table_of_an_unfinished_sweep(plan, tmp_path):
    assert "2 of 2 trials to come" in printed(aggregate(plan, Store(tmp_path)))


def test_p_values_are_corrected_for_the_settings_that_are_ranked(summary):
    ranked = [s for s in summary.settings if s.is_ranked]
    assert len(ranked) == 16
    assert [s.p_holm for s in ranked] == holm([s.paired.p for s in ranked])
    assert {s.p_holm for s in summary.settings if not s.is_ranked} == {None}
    assert "p_holm" in printed(summary)


def test_what_is_bold_is_clear_after_the_correction(plan, store):
    """One of many settings that are each just significant is not clear; the same one alone is."""
    summary = aggregate(plan, store)
    best = next(s for s in summary.settings if s.is_ranked)
    assert best.paired.p < 0.05
    assert best.is_clear == (best.p_holm < 0.05)
    assert not replace(best, p_holm=0.05).is_clear
    assert replace(best, p_holm=0.049).is_clear
    fallen = replace(best.paired, resurgence=replace(best.paired.resurgence, value=-0.3))
    assert not replace(best, p_holm=0.001, paired=fallen).is_clear, "less of it did not come back"


def test_one_seed_is_said_to_be_one(tmp_path):
    plan = synthetic.make_plan(seeds=(0,))
    assert "this one seed only" in printed(aggregate(plan, Store(tmp_path)))


def test_an_interval_wider_than_its_effect_is_warned_of(plan, store):
    """Uce's few points against the half of the images that esd brings back."""
    summary = aggregate(plan, store)
    wide = [s for s in summary.shown if s.paired.resurgence.is_wider_than_effect]
    assert any(s.params["unlearn.method"] == "uce" for s in wide)
    assert f"{len(wide)} of 16 intervals are wider than their resurgence is large" in printed(
        summary
    )


def test_by_averages_over_all_other_axes(plan, store, rows):
    summary = aggregate_by(plan, store, ("unlearn.method", "finetune.dataset"))
    best = summary.settings[0].params
    assert (best["unlearn.method"], best["finetune.dataset"]) == ("esd", "related")
    assert len(summary.settings) == 4
    for setting in summary.settings:
        chosen = [
            row["resurgence"]
            for row in rows
            if not row["is_control"]
            and row["finetune.steps"] > 0
            and all(row[axis] == setting.params[axis] for axis in summary.axes)
        ]
        assert (setting.planned, setting.scored) == (len(chosen), len(chosen)) == (8, 8)
        assert setting.resurgence == pytest.approx(np.mean(chosen))
        assert setting.paired.resurgence.low < setting.resurgence < setting.paired.resurgence.high


def test_settings_averaged_over_are_a_fixed_set(plan, store):
    """How they differ is no uncertainty: the mean of two is surer than the worse of them."""
    (both, *_) = aggregate_by(plan, store, ("unlearn.method",)).settings
    apart = aggregate_by(plan, store, ("unlearn.method", "finetune.dataset")).settings
    widths = [
        s.paired.resurgence.high - s.paired.resurgence.low
        for s in apart
        if s.params["unlearn.method"] == "esd"
    ]
    assert both.paired.resurgence.high - both.paired.resurgence.low < max(widths)


def test_prompts_of_several_concepts_stand_side_by_side(plan, store):
    """A second concept with the very same scores: no other mean, and twice the prompts for it."""
    other = ConceptSet.of("moon")
    moon = [
        replace(t, trial=replace(t.trial, erased=other, params={**t.params, "concept": "moon"}))
        for t in plan.trials
    ]
    both = replace(plan, trials=(*plan.trials, *moon))
    (one, _), (two, _) = (
        aggregate_by(p, store, ("unlearn.method",)).settings for p in (plan, both)
    )
    assert two.resurgence == pytest.approx(one.resurgence)
    assert two.planned == 2 * one.planned
    (low, high) = (two.paired.resurgence.low, two.paired.resurgence.high)
    assert one.paired.resurgence.low < low < high < one.paired.resurgence.high


def test_by_an_axis_that_does_not_exist_suggests_one(plan, store):
    with pytest.raises(ResurgeError, match=r"'unlearn.metod'; did you mean 'unlearn.method'\?"):
        aggregate_by(plan, store, ("unlearn.metod",))
    with pytest.raises(ResurgeError, match=r"allowed: finetune.dataset"):
        aggregate_by(plan, store, ("seed",))


def test_by_of_an_unfinished_sweep(plan, tmp_path):
    summary = aggregate_by(plan, Store(tmp_path), ("unlearn.method",))
    assert [s.resurgence for s in summary.settings] == [None, None]
    assert "16 of 16 trials to come" in printed(summary)


def test_the_command_prints_averages(plan, store):
    console = Console(width=160, record=True, file=io.StringIO())
    show_settings(plan, store, console, ("unlearn.method",))
    said = console.export_text()
    assert "averaged over finetune.dataset, finetune.learning_rate, finetune.steps" in said
    assert [line.split()[0] for line in said.splitlines()[2:4]] == ["esd", "uce"]


def test_settings_as_parquet(summary, tmp_path):
    results.write(settings_table(summary), tmp_path / "settings.parquet")
    rows = pq.read_table(tmp_path / "settings.parquet").to_pylist()
    assert len(rows) == 36
    assert {row["p_holm"] is None for row in rows if row["is_control"]} == {True}
    best = rows[0]
    assert best["resurgence_low"] < best["resurgence"] < best["resurgence_high"]
    assert best["replicates"] == best["trials_scored"] == 2


def test_settings_and_times_as_csv_and_json(plan, store):
    by = ("unlearn.method",)
    as_json = json.loads(text(plan, store, "json", by, False, None))
    as_csv = pd.read_csv(io.StringIO(text(plan, store, "csv", by, False, None)))
    assert [row["unlearn.method"] for row in as_json] == ["esd", "uce"]
    assert list(as_csv["resurgence"]) == pytest.approx([row["resurgence"] for row in as_json])
    times = pd.read_csv(io.StringIO(text(plan, store, "csv", (), True, None)))
    assert {"steps", "still_gone", "still_gone_low", "median_steps"} <= set(times.columns)


def test_every_column_of_settings_and_times_is_documented(plan, store, summary):
    documented = DOCS.read_text()
    axes = {*plan.trials[0].trial.params, "unlearn.esd.group"}
    times = json.loads(text(plan, store, "json", (), True, None))
    points = json.loads(text(plan, store, "json", (), False, None, points=True))
    for name in {*settings_table(summary).column_names, *times[0], *points[0]} - axes:
        assert f"`{name}`" in documented, name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((True, True, False, None, ()), "--csv and --json"),
        ((False, False, True, None, ("unlearn.method",)), "--by and --time-to-resurgence"),
        ((False, False, False, 0.5, ()), "--threshold is of --time-to-resurgence"),
        ((False, False, True, float("nan"), ()), "--threshold must be a number"),
        ((False, False, False, None, ("seed",), False, True), "--by and --points"),
        ((False, False, True, None, (), False, True), "--points and --time-to-resurgence"),
    ],
)
def test_options_that_do_not_go_together(given, said):
    with pytest.raises(ResurgeError, match=said):
        choose_format(*given)
