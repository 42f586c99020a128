"""The `evaluate` block: which set is asked, and what a plan makes of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.plan.plan import make_plan
from orchestrator.sweepfile.load import parse

TEXT = """
name: groups
base: shapes
concept: star
edits: [{unlearn: uce}, {finetune: {dataset: related, steps: 1}}]
evaluate: {metrics: [concept_accuracy], images_per_prompt: 2, SET}
"""


def text(more: str) -> str:
    return TEXT.replace(", SET", f", {more}" if more else "")


def probes(more: str) -> list[dict[str, object]]:
    found = make_plan(parse(text(more))).trials[0].final.sample.settings["probes"]
    assert isinstance(found, list)
    return found


def test_templates_is_what_is_asked_unless_another_set_is_named() -> None:
    usual = probes("")
    assert usual == probes("set: templates") == probes("set: null")
    assert {probe["role"] for probe in usual} == {"erased", "retained", "never_known"}
    assert probes("retain: [circle]") == probes("set: {templates: {retain: [circle]}}")


def test_the_same_rows_are_the_same_pictures_whatever_set_they_are_of() -> None:
    rows = ", ".join(
        f"{{role: {p['role']}, concept: {p['concept']}, prompt: {p['prompt']}}}" for p in probes("")
    )
    one, other = (
        make_plan(parse(text(more))) for more in ("", f"set: {{inline: {{rows: [{rows}]}}}}")
    )
    assert [trial.digest for trial in one.trials] == [trial.digest for trial in other.trials]


def test_rows_of_several_sets_are_pooled_each_once() -> None:
    found = probes("set: [templates, shapes]")
    assert {probe["role"] for probe in found} == {
        "erased", "retained", "never_known", "synonym", "other",
    }  # fmt: skip
    assert len({str(probe) for probe in found}) == len(found)


def test_a_row_s_own_noise_seed_is_part_of_the_pictures() -> None:
    row = "role: erased, prompt: 'a {concept}'"
    plain, own = (
        make_plan(parse(text(f"set: {{inline: {{rows: [{{{row}{more}}}]}}}}")))
        for more in ("", ", noise_seed: 3")
    )
    assert plain.trials[0].final.sample.settings["probes"] == [
        {"role": "erased", "concept": "star", "prompt": "a star"}
    ]
    assert own.trials[0].final.sample.settings["probes"][0]["noise_seed"] == 3
    assert plain.trials[0].digest != own.trials[0].digest


def test_what_is_written_is_read_again_as_the_same() -> None:
    for more in ("", "retain: [circle]", "set: shapes", "set: [templates, shapes]"):
        sweep = parse(text(more))
        assert parse(json.dumps(sweep.canonical())) == sweep


def test_the_plan_keeps_the_file_that_it_rests_on(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na star\n")
    plan = make_plan(parse(text(f"set: {{prompts_file: {{path: {tmp_path}/p.csv}}}}")))
    assert [one.name for one in plan.inputs if one.kind == "evaluation"] == ["prompts_file"]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("set: nothing", "unknown evaluation set 'nothing'"),
        ("set: []", "at least one set"),
        ("set: shapes, retain: [circle]", "write {templates: {retain: …}}"),
        ("set: {templates: {retain: [star]}}", "is erased by this sweep"),
        ("set: {objects: {}}", "does not know 'star'"),
        (
            "set: {inline: {rows: [{role: other, concept: circle, prompt: a circle}]}}",
            "no row of the role erased for 'star'",
        ),
        (
            f"set: {{inline: {{rows: [{{role: erased, prompt: {'star ' * 40}}}]}}}}",
            "shorten it",
        ),
    ],
)
def test_refuses(more: str, what: str) -> None:
    with pytest.raises(SweepError) as error:
        parse(text(more))
    assert what in str(error.value)
