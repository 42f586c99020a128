"""The `evaluate` block: which set is asked, and what a plan makes of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.core.registry import find
from orchestrator.home import Home
from orchestrator.plan.plan import make_plan
from orchestrator.plan.stored import from_text, to_text
from orchestrator.run.job import open_job, open_results
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


def test_the_bundled_base_is_asked_what_no_method_trains_on_unless_another_set_is_named() -> None:
    usual = probes("")
    assert usual == probes("set: held_out") == probes("set: null") != probes("set: templates")
    assert {probe["role"] for probe in usual} == {"erased", "retained", "never_known"}
    assert probes("retain: [circle]") == probes("set: {held_out: {retain: [circle]}}")


def test_prompts_are_asked_as_they_are() -> None:
    given = 'prompts: ["one {concept}"]'
    assert probes(given) == probes(f"set: templates, {given}")
    assert {p["prompt"] for p in probes(given) if p["role"] == "erased"} == {"one star"}


def test_a_base_of_ones_own_is_asked_its_own_prompts() -> None:
    assert find("base", "diffusers").evaluation == "templates"


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


def test_without_pictures_none_is_drawn_and_weights_are_compared() -> None:
    sweep = parse(text("pictures: none").replace("[concept_accuracy]", "[weight_distance]"))
    plan = make_plan(sweep)
    assert {stage.kind for stage in plan.stages} == {"unlearn", "prepare", "finetune", "score"}
    assert len({trial.digest for trial in plan.trials}) == len(plan.trials)
    again = from_text(to_text(plan))
    assert [trial.digest for trial in again.trials] == [trial.digest for trial in plan.trials]
    assert not any(trial.final.is_drawn for trial in again.trials)
    assert parse(json.dumps(sweep.canonical())) == sweep


def test_pictures_and_none_of_them_do_not_go_together() -> None:
    with pytest.raises(SweepError, match="scores pictures but"):
        parse(text("pictures: none"))
    with pytest.raises(SweepError, match="must be all or none"):
        parse(text("pictures: some"))


def test_a_job_whose_pictures_nobody_scores_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "blind.yaml"
    file.write_text(text("").replace("[concept_accuracy]", "[weight_distance]"))
    home = Home.find(tmp_path / "home")
    with pytest.raises(SweepError, match="give no resurgence"):
        open_job(str(file), (), home)
    assert open_job(str(file), ("evaluate.pictures=none",), home).plan.trials
    assert open_results(str(file), home).plan.trials  # what was run before can be read


REFERENCE = """
reference:
  source: a paper
  rows: [ROW]
"""


def test_published_numbers_stand_beside_what_they_are_of() -> None:
    row = "{unlearn.method: uce, base: 0.9, unlearned: 0.1}"
    sweep = parse(text("") + REFERENCE.replace("ROW", row))
    assert sweep.reference is not None
    assert sweep.reference.rows == ({"unlearn.method": "uce", "base": 0.9, "unlearned": 0.1},)
    assert parse(json.dumps(sweep.canonical())) == sweep


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{unlearn.method: esd, base: 0.9}", "no trial of this sweep has"),
        ("{unlearn.metod: uce, base: 0.9}", "did you mean 'unlearn.method'"),
        ("{unlearn.method: uce}", "some of base, unlearned, retained"),
        ("{unlearn.method: uce, base: high}", "base must be a number"),
    ],
)
def test_published_numbers_of_nothing_are_refused(row: str, what: str) -> None:
    with pytest.raises(SweepError) as error:
        parse(text("") + REFERENCE.replace("ROW", row))
    assert what in str(error.value)
