"""What is measured beside the erased concept: synonyms, others, each concept of a set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.core.artifacts import VALUES, ValueRow
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.results.groups import Group, group_columns
from orchestrator.results.measure import TrialReader
from orchestrator.results.settings import aggregate
from orchestrator.results.settings_table import settings_rows
from orchestrator.results.trials_table import table
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse

TEXT = """
name: groups
base: tiny
concept: CONCEPT
edits: [{unlearn: uce}, {finetune: {dataset: dots, steps: [0, 1]}}]
evaluate:
  metrics: [brightness]
  images_per_prompt: 2
  set: {inline: {rows: [
    {role: erased, prompt: "a {concept}"}, {role: erased, prompt: "one {concept}"},
    {role: synonym, concept: star, prompt: "a spark"},
    {role: other, concept: circle, prompt: "a circle"},
    {role: other, concept: circle, prompt: "one circle"},
    {role: other, concept: heart, prompt: "a heart"},
    {role: other, concept: heart, prompt: "one heart"}]}}
seeds: 2
"""
LEVELS = {"base": 0.9, "unlearn": 0.1, "finetune": 0.5}
LOST = {"base": 0.8, "unlearn": 0.6, "finetune": 0.7}


def planned(concept: str = "star") -> Plan:
    return make_plan(parse(TEXT.replace("CONCEPT", concept)))


def value(stage: Stage, role: str, concept: str) -> float:
    """Erased concepts and synonyms come and go, the others lose a little; hearts more."""
    kind = stage.model.kind
    if role == "other":
        return LOST[kind] - (0.1 if concept == "heart" and kind == "unlearn" else 0.0)
    return LEVELS[kind] + (0.2 if concept == "heart" and kind == "finetune" else 0.0)


def commit(store: Store, plan: Plan) -> None:
    for stage in plan.stages:
        with store.scratch() as folder:
            files, numbers = {}, {}
            if stage.kind == "score":
                probes = stage.parent.settings["probes"]  # type: ignore[union-attr]
                rows = [
                    ValueRow(p["role"], p["concept"], p["prompt"], i, j,
                             value(stage, p["role"], p["concept"]) + 0.01 * i)
                    for i, p in enumerate(probes) for j in range(2)
                ]  # fmt: skip
                VALUES.write(folder / VALUES.name, rows)
                files = {VALUES.name: folder / VALUES.name}
                roles = dict.fromkeys(row.role for row in rows)
                numbers = {r: float(np.mean([x.value for x in rows if x.role == r])) for r in roles}
            store.commit(stage, files, numbers, "2026-01-01T10:00:00+00:00", 1.0, {})


@pytest.fixture
def store(calls: Callable[[], list[str]], tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_synonyms_come_back_and_others_lose(store: Store) -> None:
    plan = planned()
    commit(store, plan)
    trial = next(t for t in plan.trials if t.steps and not t.is_control)
    measured = TrialReader(plan, store).measure(trial)
    by_name = {one.group.name: one for one in measured.groups}
    assert list(by_name) == ["synonym", "other"]
    assert by_name["synonym"].paired.resurgence.value == pytest.approx(0.4)
    assert by_name["other"].lost.value == pytest.approx(0.25)
    assert by_name["other"].paired.resurgence.value == pytest.approx(0.15)
    assert measured.base.retained == pytest.approx(by_name["other"].base)
    assert measured.worst is None


def test_each_concept_of_a_set_and_the_worst(store: Store) -> None:
    plan = planned("[[star, heart]]")
    commit(store, plan)
    trial = next(t for t in plan.trials if t.steps and not t.is_control)
    measured = TrialReader(plan, store).measure(trial)
    by_name = {one.group.name: one for one in measured.groups}
    assert list(by_name) == ["erased.star", "erased.heart", "synonym", "other"]
    assert by_name["erased.heart"].paired.resurgence.value == pytest.approx(0.6)
    assert measured.worst is by_name["erased.heart"]
    assert measured.paired is not None
    assert measured.paired.resurgence.value == pytest.approx(0.5)
    columns = group_columns(measured.groups)
    assert columns["worst_concept"] == "heart"
    assert columns["erased.star_resurgence"] == pytest.approx(0.4)


def test_others_are_uncertain_by_concept_and_what_is_erased_by_prompt(store: Store) -> None:
    plan = planned()
    commit(store, plan)
    trial = next(t for t in plan.trials if t.steps and not t.is_control)
    reader = TrialReader(plan, store)
    other = reader.group(trial.final, Group("other"))
    assert other is not None
    assert other.clusters == (0, 0, 1, 1)
    [numbers] = [one for one in reader.measure(trial).groups if one.group.role == "other"]
    # Two concepts that lose 0.2 and 0.3: more apart than their prompts, which lose the same.
    assert numbers.lost.high - numbers.lost.low > 12 * 2 * 0.05 * 0.99


def test_tables_have_a_column_a_number_and_none_where_nothing_is_asked(store: Store) -> None:
    plan = planned()
    commit(store, plan)
    trials = table(plan, store)
    for name in ("synonym_resurgence", "other_lost", "other_lost_low", "synonym_recovery"):
        assert name in trials.column_names
    rows = settings_rows(aggregate(plan, store))
    final = next(row for row in rows if row["finetune.steps"] == 1 and not row["is_control"])
    assert final["synonym_resurgence"] == pytest.approx(0.4)
    assert final["other_lost"] == pytest.approx(0.25)
    text = TEXT[: TEXT.index("  set:")] + "seeds: 2\n"
    usual = make_plan(parse(text.replace("CONCEPT", "star")))
    commit(Store(f"{store.location}2"), usual)
    found = table(usual, Store(f"{store.location}2")).column_names
    assert not [name for name in found if name.startswith(("synonym", "other", "worst"))]


def test_rows_that_ask_the_same_from_other_noise_are_one_prompt(store: Store) -> None:
    rows = ", ".join(
        f"{{role: erased, prompt: 'a {{concept}}', noise_seed: {n}}}" for n in range(3)
    )
    text = TEXT[: TEXT.index("  set:")] + f"  set: {{inline: {{rows: [{rows}]}}}}\nseeds: 1\n"
    plan = make_plan(parse(text.replace("CONCEPT", "star")))
    commit(store, plan)
    found = TrialReader(plan, store).group(plan.trials[0].final, Group("erased"))
    assert found is not None
    assert found.values.shape == (1, 6)
