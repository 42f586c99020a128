import io
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator import results
from orchestrator.errors import StoreError
from orchestrator.measure import Reader, primary
from orchestrator.store import Store
from orchestrator.summary import aggregate, render
from tests.orchestrator import synthetic

DOCS = Path(__file__).parents[2] / "docs" / "results.md"


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
    assert {row["unlearn.esd.variant"] for row in rows if row["unlearn.method"] == "uce"} == {None}


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
    store.put_failure(trial.final.model, "out of memory", None)
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
    score = primary(trial.final)
    synthetic.commit(store, plan, {s.digest for s in trial.stages() if s != score})
    with store.scratch() as folder:
        files, metrics = synthetic.content(score, folder)
        table = pq.read_table(files["values.parquet"])
        image = pa.array(np.asarray(table["image_index"]) + 1)
        at = table.schema.get_field_index("image_index")
        pq.write_table(table.set_column(at, "image_index", image), files["values.parquet"])
        store.commit(score, files, metrics, "2026-01-01T00:00:00+00:00", 1.0, {})
    with pytest.raises(StoreError, match="different images"):
        Reader(plan, store).measure(trial)


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
    assert len(text.strip().splitlines()) == 2 + 16 + 1, "settings of 0 steps are left out"


def test_a_narrow_console_cuts_no_number(summary):
    assert "…" not in printed(summary, width=40)


def test_the_table_of_an_unfinished_sweep(plan, tmp_path):
    assert "2 of 2 seeds to come" in printed(aggregate(plan, Store(tmp_path)))
