"""Axes -> trials."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.sweep.trial import Trial
from orchestrator.sweepfile.load import parse

HEAD = """
name: grid
concept: {concept}
evaluate: {{metrics: concept_accuracy}}
seeds: {seeds}
edits:
"""

TWO_METHODS = """
  - unlearn:
      - esd: {group: [x, u]}
      - uce
  - finetune: {dataset: [related, unrelated], learning_rate: [1e-4, 1e-3], steps: [0, 100]}
"""


def grid(edits: str, concept: str = "star", seeds: object = 1) -> list[Trial]:
    return list(parse(HEAD.format(concept=concept, seeds=seeds) + edits, "f.yaml").trials)


def column(found: Sequence[Trial], *names: str) -> list[tuple[object, ...]]:
    return [tuple(trial.params.get(name) for name in names) for trial in found]


def problems(edits: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        grid(edits)
    return [str(problem) for problem in caught.value.problems]


def test_the_grid_is_the_product_of_its_axes() -> None:
    found = grid(TWO_METHODS, concept="[star, heart]", seeds=3)
    assert len(found) == 2 * (2 + 1) * 2 * 2 * 2 * 3
    assert len({tuple(trial.params.items()) for trial in found}) == len(found)


def test_axes_run_in_the_order_of_the_file_and_seeds_fastest() -> None:
    found = grid("\n  - finetune: {steps: [0, 10], dataset: related, batch_size: [2, 4]}", seeds=2)
    names = ("finetune.steps", "finetune.batch_size", "seed")
    assert column(found, *names) == [
        (0, 2, 0), (0, 2, 1), (0, 4, 0), (0, 4, 1),
        (10, 2, 0), (10, 2, 1), (10, 4, 0), (10, 4, 1),
    ]  # fmt: skip


def test_a_trial_names_everything_that_was_given() -> None:
    text = """
  - unlearn: {esd: {group: u, iterations: 10}}
  - finetune: {dataset: related, batch_size: 4}
"""
    assert dict(grid(text)[0].params) == {
        "base": "shapes",
        "concept": "star",
        "unlearn.method": "esd",
        "unlearn.esd.group": "u",
        "unlearn.esd.iterations": 10,
        "finetune.dataset": "related",
        "finetune.adapter": "full",
        "finetune.learning_rate": 1e-5,
        "finetune.steps": 100,
        "finetune.batch_size": 4,
        "seed": 0,
    }


def test_edits_carry_validated_plugins() -> None:
    unlearn, finetune = grid(TWO_METHODS)[0].edits
    assert (unlearn.key, unlearn.kind, unlearn.plugin.name) == ("unlearn", "unlearn", "esd")
    assert unlearn.plugin.settings.group == "x"
    assert unlearn.dataset is None
    assert (finetune.key, finetune.plugin.name) == ("finetune", "finetune")
    assert finetune.plugin.settings.learning_rate == 1e-4
    assert finetune.dataset is not None
    assert finetune.dataset.name == "related"


def test_a_methods_settings_are_axes_only_where_it_is_chosen() -> None:
    methods = column(grid(TWO_METHODS), "unlearn.method", "unlearn.esd.group")
    assert dict.fromkeys(methods) == dict.fromkeys([("esd", "x"), ("esd", "u"), ("uce", None)])


def test_one_method_may_stand_twice_with_other_settings() -> None:
    text = """
  - unlearn:
      - esd: {group: x, iterations: 100}
      - esd: {group: u, iterations: 50}
"""
    found = column(grid(text), "unlearn.esd.group", "unlearn.esd.iterations")
    assert found == [("x", 100), ("u", 50)]


def test_chains_of_edits_number_their_keys() -> None:
    text = """
  - unlearn: uce
  - finetune: {dataset: related, steps: [1, 2]}
  - unlearn: esd
  - finetune: {dataset: unrelated, steps: 3}
"""
    found = grid(text)
    assert [edit.key for edit in found[0].edits] == [
        "unlearn", "finetune", "unlearn_2", "finetune_2",
    ]  # fmt: skip
    names = ("finetune.steps", "unlearn_2.method", "finetune_2.dataset", "finetune_2.steps")
    assert column(found, *names) == [(1, "esd", "unrelated", 3), (2, "esd", "unrelated", 3)]


def test_finetuning_alone_is_a_sweep() -> None:
    assert column(grid("\n  - finetune: {dataset: related}"), "unlearn.method") == [(None,)]


def test_zipped_axes_move_together() -> None:
    found = grid(TWO_METHODS + "zip: [[finetune.learning_rate, finetune.steps]]")
    pairs = set(column(found, "finetune.learning_rate", "finetune.steps"))
    assert pairs == {(1e-4, 0), (1e-3, 100)}
    assert len(found) == 3 * 2 * 2


def test_methods_zip_with_data_sets() -> None:
    found = grid(TWO_METHODS + "zip: [[unlearn.method, finetune.dataset]]")
    pairs = set(column(found, "unlearn.method", "finetune.dataset"))
    assert pairs == {("esd", "related"), ("uce", "unrelated")}


def test_a_zipped_setting_of_one_method_leaves_the_others_free() -> None:
    found = grid(TWO_METHODS + "zip: [[unlearn.esd.group, finetune.steps]]")
    pairs = set(column(found, "unlearn.esd.group", "finetune.steps"))
    assert pairs == {("x", 0), ("u", 100), (None, 0), (None, 100)}


def test_concepts_zip_with_seeds() -> None:
    found = grid(TWO_METHODS + "zip: [[concept, seed]]", concept="[star, heart]", seeds="[7, 8]")
    assert set(column(found, "concept", "seed")) == {("star", 7), ("heart", 8)}


def test_exclude_drops_what_matches_all_its_values() -> None:
    rule = "exclude: [{unlearn.method: uce, finetune.steps: 100}]"
    left = column(grid(TWO_METHODS + rule), "unlearn.method", "finetune.steps")
    assert ("uce", 100) not in left
    assert ("uce", 0) in left
    assert ("esd", 100) in left


def test_exclude_takes_any_of_a_list_and_numbers_as_text() -> None:
    rule = "exclude: [{finetune.learning_rate: ['1e-4', 1e-3], finetune.steps: 0}]"
    assert set(column(grid(TWO_METHODS + rule), "finetune.steps")) == {(100,)}


def test_exclude_can_name_defaults() -> None:
    found = grid("\n  - finetune: {dataset: related, steps: [1, 2]}")
    assert len(found) == 2
    rule = "\nexclude: [{finetune.adapter: full, finetune.steps: 2}]"
    assert len(grid("\n  - finetune: {dataset: related, steps: [1, 2]}" + rule)) == 1


def test_excluded_points_need_not_be_valid() -> None:
    edit = """
  - finetune:
      {dataset: related, schedule: [constant, cosine], steps: [10, 200], warmup_steps: 100}
"""
    assert "must be below steps (10)" in problems(edit)[0]
    rule = "exclude: [{finetune.schedule: cosine, finetune.steps: 10}]"
    assert len(grid(edit + rule)) == 3


def test_each_exclude_must_match() -> None:
    rules = "exclude: [{unlearn.method: uce}, {unlearn.method: uce, unlearn.esd.group: x}]"
    assert problems(TWO_METHODS + rules) == [
        "f.yaml:12: exclude[1]: matches no trial of the grid; remove it or mend it"
    ]


def test_include_adds_a_point_with_values_off_the_axes() -> None:
    point = "include: [{concept: circle, unlearn.method: esd, finetune.steps: 400, seed: 9}]"
    more = grid(TWO_METHODS + point)[len(grid(TWO_METHODS)) :]
    assert set(column(more, "concept", "unlearn.method", "finetune.steps", "seed")) == {
        ("circle", "esd", 400, 9)
    }
    assert len(more) == 2 * 2 * 2  # groups, data sets, rates: the grid's


def test_include_can_name_plugins_and_settings_that_the_grid_lacks() -> None:
    point = (
        "include: [{finetune.dataset: digits, finetune.lora_rank: 8, finetune.adapter: lora, "
        "unlearn.method: uce}]"
    )
    more = grid(TWO_METHODS + point)[len(grid(TWO_METHODS)) :]
    names = ("finetune.dataset", "finetune.adapter", "finetune.lora_rank")
    assert set(column(more, *names)) == {("digits", "lora", 8)}


def test_include_merges_points_that_the_grid_has() -> None:
    point = "include: [{finetune.steps: [100, 200]}]"
    assert len(grid(TWO_METHODS + point)) == len(grid(TWO_METHODS)) // 2 * 3


def test_included_points_are_not_excluded() -> None:
    rules = "exclude: [{unlearn.method: uce}]\ninclude: [{unlearn.method: uce, finetune.steps: 0}]"
    found = grid(TWO_METHODS + rules)
    assert ("uce", 0) in column(found, "unlearn.method", "finetune.steps")


def test_include_frees_a_zipped_axis_that_it_names() -> None:
    rules = "zip: [[finetune.learning_rate, finetune.steps]]\ninclude: [{finetune.steps: 400}]"
    found = column(grid(TWO_METHODS + rules), "finetune.learning_rate", "finetune.steps")
    assert set(found) == {(1e-4, 0), (1e-3, 100), (1e-4, 400), (1e-3, 400)}


def test_a_zip_can_bring_a_large_grid_under_the_limit() -> None:
    edit = f"\n  - finetune: {{dataset: related, steps: {list(range(400))}}}"
    concept = f"\nzip: [[finetune.steps, seed]]\ninclude: {[{'finetune.steps': 500}]}"
    assert len(grid(edit + concept, seeds=400)) == 800


def test_a_huge_grid_is_refused_without_being_built() -> None:
    steps = list(range(1000))
    edit = f"\n  - finetune: {{dataset: related, steps: {steps}, batch_size: {steps[1:]}}}"
    assert problems(edit)[0].endswith("must have at most 100,000 trials but has 999,000")
    zipped = edit + "\nzip: [[concept, seed]]"
    assert "has more (999,000 before zip)" in problems(zipped)[0]


def test_the_order_of_settings_makes_no_second_trial() -> None:
    text = """
  - unlearn:
      - esd: {group: [x, u], iterations: 50}
      - esd: {iterations: [50, 60], group: x}
"""
    found = column(grid(text), "unlearn.esd.group", "unlearn.esd.iterations")
    assert found == [("x", 50), ("u", 50), ("x", 60)]
