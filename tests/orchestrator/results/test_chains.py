"""Every model on the way of a trial with several unlearnings."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from orchestrator.cli.show.settings import render_points
from orchestrator.core.artifacts import DATASET, EXAMPLES, IMAGES, VALUES, ImageRow, ValueRow
from orchestrator.core.concepts import targets_of
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.chains import Chain, Passage, chains
from orchestrator.results.groups import Group
from orchestrator.results.settings import aggregate, caption
from orchestrator.results.settings_table import points_rows, points_table
from orchestrator.results.trials_table import table
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from orchestrator.tracking.sweep_runs import SweepView

TEXT = """
name: chains
base: tiny
concept: {name: two, concepts: [star, heart]}
edits:
  - unlearn: {method: METHOD, order: ORDER}
  - finetune: {dataset: dots, steps: [0, 1, 2]}
evaluate: {metrics: [brightness], images_per_prompt: 2}
seeds: 2
"""


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return buffer.getvalue()


PICTURE = _picture()


def planned(order: str = "continual", method: str = "uce") -> Plan:
    return make_plan(parse(TEXT.replace("METHOD", method).replace("ORDER", order)))


def value(stage: Stage, concept: str) -> float:
    """0.9 until a concept is erased, then 0.1, and 0.2 more for each step of fine-tuning."""
    model = stage.model
    gone = [s for s in model.lineage if s.kind == "unlearn"]
    if not any(t.concept == concept for s in gone for t in targets_of(s.settings)):
        return 0.9
    return 0.1 + 0.2 * model.steps


def commit(store: Store, plan: Plan, without: Collection[str] = ()) -> None:
    for stage in plan.stages:
        if stage.key in without:
            continue
        with store.scratch() as folder:
            files, numbers = {}, {}
            if stage.kind == "sample":
                pictures = [
                    ImageRow(p["role"], p["concept"], p["prompt"], i, 0, PICTURE)
                    for i, p in enumerate(stage.settings["probes"])
                ]
                IMAGES.write(folder / IMAGES.name, pictures)
                files = {IMAGES.name: folder / IMAGES.name}
            if stage.kind == "prepare":
                (folder / DATASET.name).write_bytes(b"pictures")
                files, numbers = {DATASET.name: folder / DATASET.name}, {EXAMPLES: 4.0}
            if stage.kind == "score":
                probes = stage.parent.settings["probes"]  # type: ignore[union-attr]
                rows = [
                    ValueRow(p["role"], p["concept"], p["prompt"], i, j, value(stage, p["concept"]))
                    for i, p in enumerate(probes) for j in range(2)
                ]  # fmt: skip
                VALUES.write(folder / VALUES.name, rows)
                files = {VALUES.name: folder / VALUES.name}
                numbers = {"erased": float(np.mean([r.value for r in rows if r.role == "erased"]))}
            store.commit(stage, files, numbers, "2026-01-01T10:00:00+00:00", 1.0, {})


@pytest.fixture
def store(calls: Callable[[], list[str]], tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def measured(plan: Plan, store: Store, without: Collection[str] = ()) -> Chain:
    commit(store, plan, without)
    return chains(plan, store)[0]


def each(chain: Chain) -> list[tuple[float, float]]:
    """The two concepts' scores at every point."""
    groups = [Group("erased", concept) for concept in ("star", "heart")]
    return [
        tuple(round(p.scores[group].value, 3) for group in groups)  # type: ignore[misc]
        for p in chain.points
    ]


def test_each_concept_is_scored_after_each_erasure_and_each_fine_tune(store: Store) -> None:
    chain = measured(planned(), store)
    assert [p.passage for p in chain.points] == [
        Passage(0, "base", False, ()),
        Passage(1, "uce star", False, ("star",)),
        Passage(2, "uce heart", False, ("star", "heart")),
        Passage(3, "dots 1 steps", False, ("star", "heart")),
        Passage(3, "dots 2 steps", False, ("star", "heart")),
    ]
    assert each(chain) == [(0.9, 0.9), (0.1, 0.9), (0.1, 0.1), (0.3, 0.3), (0.5, 0.5)]
    both = [p.scores[Group("erased")].value for p in chain.points]
    assert both == pytest.approx([0.9, 0.5, 0.1, 0.3, 0.5])
    assert chain.params["unlearn.order"] == "continual"
    assert not {"seed", "finetune.steps"} & chain.params.keys()


def test_a_concept_that_is_erased_alone_lies_aside_until_it_is_added(store: Store) -> None:
    chain = measured(planned("independent"), store)
    names = [(p.passage.position, p.passage.name, p.passage.erased) for p in chain.points]
    assert names[1:4] == [
        (1, "uce star", ("star",)),
        (2, "uce heart, alone", ("heart",)),
        (2, "uce heart, added", ("star", "heart")),
    ]
    assert each(chain)[1:4] == [(0.1, 0.9), (0.9, 0.1), (0.1, 0.1)]


def test_seeds_that_share_a_model_are_one(store: Store) -> None:
    chain = measured(planned(), store)
    assert [p.replicates for p in chain.points] == [1, 1, 1, 2, 2]


def test_roles_are_told_apart_and_controls_come_last(store: Store) -> None:
    plan = planned("simultaneous")
    found = measured(plan, store)
    assert [p.passage.label for p in found.points][:2] == ["base", "uce star+heart"]
    assert [group.name for group in found.points[0].scores] == [
        "erased", "erased.star", "erased.heart", "retained", "never_known",
    ]  # fmt: skip
    assert [one.is_control for one in chains(plan, store)] == [False, True]
    [control] = [one for one in chains(plan, store) if one.is_control]
    assert [p.passage.label for p in control.points] == ["base", "dots 1 steps", "dots 2 steps"]


def test_a_point_of_which_nothing_is_known_yet_is_left_out(store: Store) -> None:
    plan = planned()
    trial = next(one for one in plan.trials if one.way)
    assert trial.way[0].primary is not None
    chain = measured(plan, store, without=[trial.way[0].primary.key])
    assert [p.passage.position for p in chain.points] == [0, 2, 3, 3]


def test_a_sweep_that_fine_tunes_nowhere_shows_what_it_unlearned(store: Store) -> None:
    text = TEXT.replace("METHOD", "[uce, none]").replace("ORDER", "simultaneous")
    plan = make_plan(parse(text.replace("  - finetune: {dataset: dots, steps: [0, 1, 2]}\n", "")))
    commit(store, plan)
    shown = aggregate(plan, store).shown
    assert {setting.params["unlearn.method"] for setting in shown} == {"uce", "none"}
    assert not any(setting.is_ranked for setting in shown)


def test_points_are_rows_of_numbers_and_of_a_table(store: Store) -> None:
    plan = planned("independent")
    commit(store, plan)
    found = chains(plan, store)
    rows = list(points_rows(found))
    [row] = [r for r in rows if r["point"] == "uce heart" and r["group"] == "erased.heart"]
    assert (row["position"], row["alone"], row["erased_so_far"]) == (2, True, "heart")
    assert row["score_low"] <= row["score"] == pytest.approx(0.1)
    assert points_table(found).num_rows == len(rows)
    console = Console(record=True, width=300)
    render_points(found, ["unlearn.order", "finetune.dataset"], caption(plan), console)
    said = console.export_text()
    for words in ("uce heart, alone", "uce heart, added", "dots 2 steps", "control 1", "0.10 ["):
        assert words in said


def test_a_trial_has_columns_of_what_lies_on_its_way(store: Store) -> None:
    plan = planned("independent")
    commit(store, plan)
    rows = table(plan, store).to_pylist()
    first = rows[0]
    assert (first["way_1"], first["way_2"]) == ("uce star", "uce heart, alone")
    assert first["way_1_erased.star"] == pytest.approx(0.1)
    assert first["way_1_erased.heart"] == pytest.approx(0.9)
    # What the trial's own numbers are of has columns already.
    assert "way_3" not in first
    usual = planned("simultaneous")
    commit(Store(f"{store.location}2"), usual)
    names = table(usual, Store(f"{store.location}2")).column_names
    assert not [name for name in names if name.startswith("way")]


def test_mlflow_has_the_way_by_position(store: Store) -> None:
    plan = planned("independent")
    commit(store, plan)
    runs = SweepView(plan, store, None).runs()
    run = next(r for r in runs if r.kind == "trial" and r.params["finetune.steps"] == "2")
    assert run.tags["resurge.way"] == "base → uce star → uce heart, added → dots 2 steps"
    found = {(p.name, p.step): p.value for p in run.points}
    way = [found["way.erased.star", position] for position in range(4)]
    assert way == pytest.approx([0.9, 0.1, 0.1, 0.5])
    assert found["alone.erased.star", 2] == pytest.approx(0.9)
