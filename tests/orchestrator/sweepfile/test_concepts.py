"""Concepts that are erased jointly: how a sweep file says it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import SweepError
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse

SWEEP = """
name: sets
concept: {concept}
edits:
  - unlearn: {unlearn}
  - finetune: {{dataset: digits, steps: [0, 10]}}
evaluate: {{metrics: [concept_accuracy]}}
"""
THREE = "{name: three, concepts: [circle, square, star], anchors: {circle: heart}}"


def sweep(concept: str, unlearn: str = "uce", more: str = "") -> Sweep:
    return parse(SWEEP.format(concept=concept, unlearn=unlearn) + more, "f.yaml")


def problems(concept: str, unlearn: str = "uce", more: str = "") -> list[str]:
    with pytest.raises(SweepError) as caught:
        sweep(concept, unlearn, more)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_a_value_is_a_concept_a_list_erased_jointly_or_a_named_set() -> None:
    found = sweep(f"[star, [circle, square], {THREE}]").grid.all_sets()
    assert found == (
        ConceptSet.of("star"),
        ConceptSet("circle+square", ("circle", "square")),
        ConceptSet("three", ("circle", "square", "star"), {"circle": "heart"}),
    )


def test_a_trial_is_called_as_its_set() -> None:
    trials = sweep("[star, [circle, square]]").trials
    assert {trial.params["concept"] for trial in trials} == {"star", "circle+square"}
    assert {trial.erased.concepts for trial in trials} == {("star",), ("circle", "square")}


@pytest.mark.parametrize("concept", ["star", "[[circle, square]]", THREE, f"[{THREE}, heart]"])
def test_the_canonical_form_is_read_back(concept: str) -> None:
    made = sweep(concept)
    assert parse(json.dumps(made.canonical())) == made


def test_points_speak_of_sets_by_name_and_of_lists_by_their_concepts() -> None:
    more = "exclude: [{concept: [[circle, square]], finetune.steps: 0}]\n"
    more += "include: [{concept: [[heart, cross]], finetune.steps: 5}]\n"
    found = sweep(f"[[circle, square], {THREE}]", more=more)
    assert [(t.concept, t.params["finetune.steps"]) for t in found.trials] == [
        ("circle+square", 10),
        ("three", 0),
        ("three", 10),
        ("heart+cross", 5),
    ]
    assert parse(json.dumps(found.canonical())) == found


def test_what_is_retained_is_no_concept_of_the_set() -> None:
    [erased] = sweep("[[circle, square]]").grid.all_sets()
    probes = sweep("[[circle, square]]").evaluate.probes(sweep("star").base, erased)
    assert {p.concept for p in probes if p.role == "erased"} == {"circle", "square"}
    retained = {p.concept for p in probes if p.role == "retained"}
    assert retained == {"triangle", "star", "heart", "cross", "crescent", "arrow"}


@pytest.mark.parametrize(
    ("name", "text", "anchors"),
    [
        ("names.txt", "circle\n\n square \n", {}),
        ("names.csv", "Concept, anchor\ncircle,heart\nsquare,\n", {"circle": "heart"}),
    ],
)
def test_a_file_has_a_concept_a_line(
    tmp_path: Path, name: str, text: str, anchors: dict[str, str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    made = sweep(f"{{name: two, file: {path}}}")
    assert made.grid.erased("two") == ConceptSet("two", ("circle", "square"), anchors)
    path.unlink()
    assert parse(json.dumps(made.canonical())) == made
    assert parse(made.recorded) == made


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ("[[]]", "concept[0]: must have at least one value but is empty"),
        ("[[circle, circle]]", "concept[0][1]: duplicate value 'circle'"),
        ("[[circle, stra]]", "concept[0][1]: unknown concept 'stra'"),
        ("[[circle, [star]]]", "concept[0]: must be a concept, a list of concepts"),
        ("[[circle, 7]]", "concept[0][1]: must be text but got 7"),
        ("[[circle, square], [square, circle]]", "concept[1]: 'square+circle' erases the same as"),
        ("{concepts: [star]}", "concept: missing key 'name'"),
        ("{name: two}", "concept: must have either concepts: […] or file:"),
        ("{name: heart, concepts: [circle, star]}", "concept: a set of concepts cannot be called"),
        ("{name: x, concepts: [star], anchor: 1}", "concept.anchor: unknown key"),
        ("{name: x, concepts: [star], anchors: {stra: heart}}", "concept.anchors.stra: 'stra' is"),
        ("{name: x, concepts: [star], anchors: {star: hart}}", "concept.anchors.star: unknown con"),
        ("{name: x, file: nowhere.txt}", "concept.file: nowhere.txt cannot be read: No such file"),
        (f"[{THREE}, {{name: three, concepts: [heart]}}]", "concept[1]: duplicate value 'three'"),
    ],
)
def test_says_what_is_wrong_and_where(concept: str, expected: str) -> None:
    found = problems(concept)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text("concept\ncircle\nstra\ncircle\n")
    found = problems(f"{{name: two, file: {path}}}")
    assert "names.csv, line 3: unknown concept 'stra'; did you mean 'star'?" in found[0]
    assert found[1].endswith("names.csv, line 4: 'circle' stands on line 2 already")
    assert len(found) == 2
    path.write_text("concept,anchor\ncircle,hart\n")
    [found] = problems(f"{{name: one, file: {path}}}")
    assert "line 2: unknown concept 'hart'" in found
    path.write_text("name\ncircle\n")
    assert "has no column 'concept' (it has: name)" in problems(f"{{name: t, file: {path}}}")[0]


def test_a_long_list_needs_a_name() -> None:
    words = "circle, square, triangle, star, heart, cross, crescent, arrow, red, green, blue"
    assert "needs a name" in problems(f"[[{words}, yellow, purple, orange, solid]]")[0]


def test_an_included_set_cannot_take_the_name_of_another() -> None:
    more = "include: [{concept: {name: three, concepts: [heart, cross]}}]\n"
    assert "stands elsewhere for other concepts" in problems(THREE, more=more)[0]


@pytest.mark.usefixtures("calls")
def test_a_method_that_erases_one_at_a_time_refuses_a_set_by_name() -> None:
    [found] = problems("[star, [circle, square]]", "[uce, nudge]")
    assert "unlearner 'nudge' erases one concept at a time and cannot erase 2 jointly" in found
    assert sweep("[[circle, square]]", "{nudge: {}, order: continual}").trials


CHAIN = """
name: chain
concept: {concept}
edits:
  - unlearn: {first}
  - unlearn: {second}
  - finetune: {{dataset: digits, steps: 5}}
evaluate: {{metrics: [concept_accuracy]}}
"""
PAIR = "[[circle, square]]"


def chain(first: str, second: str, concept: str = PAIR, more: str = "") -> Sweep:
    return parse(CHAIN.format(concept=concept, first=first, second=second) + more, "f.yaml")


def test_an_unlearning_names_its_own_concepts() -> None:
    made = chain("{uce: {lam: 0.2}, concepts: [circle]}", "{esd: {}, concepts: square}")
    [trial] = made.trials
    first, second, _ = trial.edits
    assert [part.concepts for part in first.erases(trial.erased)] == [("circle",)]
    assert [part.concepts for part in second.erases(trial.erased)] == [("square",)]
    assert trial.params["unlearn.concepts"] == "circle"
    assert trial.params["unlearn.uce.lam"] == 0.2
    assert parse(json.dumps(made.canonical())) == made


def test_what_an_unlearning_erases_is_an_axis_that_zips() -> None:
    more = "zip: [[unlearn.concepts, unlearn_2.method]]\n"
    first = "{uce: {}, concepts: [[circle], [circle, square]]}"
    second = "{method: [uce, none], concepts: square}"
    made = chain(first, second, more=more)
    assert [(t.params["unlearn.concepts"], t.params["unlearn_2.method"]) for t in made.trials] == [
        ("circle", "uce"),
        ("circle+square", "none"),
    ]
    assert parse(json.dumps(made.canonical())) == made


def test_the_order_is_an_axis_of_every_method() -> None:
    orders = ["independent", "continual", "simultaneous"]
    made = sweep(THREE, "{method: [uce, esd], order: [independent, continual, simultaneous]}")
    assert [t.params["unlearn.order"] for t in made.trials[::2]] == orders * 2
    parts = [len(t.edits[0].erases(t.erased)) for t in made.trials[:6:2]]
    assert parts == [3, 3, 1]
    assert parse(json.dumps(made.canonical())) == made


def test_what_is_erased_apart_keeps_its_anchor_and_knows_what_goes_beside_it() -> None:
    made = sweep(THREE, "{esd: {}, order: continual}")
    trial = made.trials[0]
    circle, square, _ = trial.edits[0].erases(trial.erased)
    assert circle.anchors == {"circle": "heart"}
    assert square.anchors == {}
    assert circle.gone == ("circle", "square", "star")


def test_an_included_point_may_have_another_order() -> None:
    more = "include: [{unlearn.order: continual, finetune.steps: 7}]\n"
    made = sweep(THREE, "{esd: {}, order: simultaneous}", more)
    assert made.trials[-1].params["unlearn.order"] == "continual"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("{uce: {}, concepts: [stra]}", "uce", "edits[0].unlearn.concepts[0]: unknown concept"),
        ("{uce: {}, order: once}", "uce", "edits[0].unlearn.order: must be one of 'simul"),
        ("{method: uce, esd: {}, order: continual}", "uce", "edits[0].unlearn.esd: unknown key"),
        ("{concepts: circle}", "uce", "edits[0].unlearn: must be the name of one unlearner"),
        ("{uce: {}, esd: {}, order: continual}", "uce", "edits[0].unlearn: must name one"),
        ("{uce: {}, concepts: circle}", "{uce: {}, concepts: circle}", "edits: the unlearnings of"),
        ("{uce: {}, concepts: heart}", "uce", "edits: the unlearnings of a trial erase heart, "),
    ],
)
def test_says_what_is_wrong_with_an_unlearning(first: str, second: str, expected: str) -> None:
    with pytest.raises(SweepError) as caught:
        chain(first, second)
    found = [f"{problem.where}: {problem.what}" for problem in caught.value.problems]
    assert len(found) == 1
    assert found[0].startswith(expected)
